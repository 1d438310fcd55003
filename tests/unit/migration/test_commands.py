"""Which command is possible in which phase, and how a new cap is seen to be heeded."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remuda.agent.v1.migration_pb2 import MigrateRequest
from remuda.compute.v1.migration_pb2 import DESCRIPTOR, MigrationProgress
from remuda_core.errors import Reason
from remuda_core.migration.bandwidth import Change, followed
from remuda_core.migration.commands import Command, Phase, Verdict, judge, refusal

MIB = 1 << 20
LATER = {Phase.SWITCH_OVER, Phase.POST_COPY, Phase.FINISHING}
commands, phases = st.sampled_from(Command), st.sampled_from(Phase)


def test_phases_and_commands_are_those_of_the_protocol() -> None:
    names = {f"PHASE_{phase}" for phase in Phase}
    assert names == set(MigrationProgress.Phase.keys()) - {"PHASE_UNSPECIFIED"}
    fields = {one.name for one in MigrateRequest.DESCRIPTOR.oneofs_by_name["command"].fields}
    assert {command.value for command in Command} == fields - {"start"}
    assert "MigrationService" in DESCRIPTOR.services_by_name


@pytest.mark.parametrize(
    ("command", "disks", "memory"),
    [
        (Command.SET_BANDWIDTH, Verdict.DEFER, Verdict.ACT),
        (Command.SET_MAX_DOWNTIME, Verdict.ACT, Verdict.ACT),
        (Command.SWITCH_TO_POST_COPY, Verdict.REFUSE, Verdict.ACT),
        (Command.PAUSE_AND_FINISH, Verdict.REFUSE, Verdict.ACT),
        (Command.CANCEL, Verdict.ACT, Verdict.ACT),
    ],
)
def test_the_table_is_that_of_the_protocols_comment(
    command: Command, disks: Verdict, memory: Verdict
) -> None:
    assert judge(command, Phase.DISKS, post_copy_allowed=True) is disks
    assert judge(command, Phase.MEMORY, post_copy_allowed=True) is memory
    assert all(judge(command, phase, post_copy_allowed=True) is Verdict.REFUSE for phase in LATER)


@given(commands, phases, st.booleans())
def test_every_refusal_names_its_phase_and_command(command: Command, phase: Phase, allowed: bool) -> None:
    told = refusal(command, phase, post_copy_allowed=allowed)
    assert told.reason is Reason.COMMAND_REFUSED
    assert (told.metadata["phase"], told.metadata["command"]) == (phase.value, command.value)
    assert re.search(rf"{command} .*{phase}", str(told))


@given(phases)
def test_post_copy_is_refused_everywhere_when_it_was_not_allowed_at_the_start(phase: Phase) -> None:
    assert judge(Command.SWITCH_TO_POST_COPY, phase, post_copy_allowed=False) is Verdict.REFUSE
    told = refusal(Command.SWITCH_TO_POST_COPY, phase, post_copy_allowed=False)
    assert "allow_post_copy" in str(told)


def change(old: int, new: int, before: float) -> Change:
    return Change(old_cap=old * MIB, new_cap=new * MIB, rate_before=round(before * MIB))


@pytest.mark.parametrize(
    ("old", "new", "before", "after", "expected"),
    [
        (12, 3, 12, 3.1, True),
        (12, 3, 12, 11.8, False),
        (0, 3, 40, 3.0, True),
        (0, 3, 40, 39.0, False),
        (3, 12, 3, 11.5, True),
        (3, 12, 3, 3.0, False),
        (3, 12, 2.9, 4.0, True),
        (3, 0, 3, 30.0, True),
        (3, 0, 3, 3.1, False),
        (20, 40, 5, 5.0, True),
        (0, 40, 30, 30.0, True),
        (10, 11, 10, 10.4, True),
    ],
    ids=[
        "lowered and heeded",
        "lowered and ignored",
        "capped first",
        "capped first and ignored",
        "raised and heeded",
        "raised and ignored",
        "raised, and the network gives no more",
        "lifted and heeded",
        "lifted and ignored",
        "raised where the cap held nothing up",
        "capped above what is sent",
        "raised by little",
    ],
)
def test_a_cap_is_judged_by_what_is_sent(
    old: int, new: int, before: float, after: float, expected: bool
) -> None:
    assert followed(change(old, new, before), after * MIB) is expected


@given(st.integers(1, 1000), st.integers(1, 1000), st.floats(0, 2000), st.floats(0, 2000))
def test_more_than_the_cap_and_its_slack_is_never_called_heeded(
    old: int, new: int, before: float, after: float
) -> None:
    if followed(change(old, new, before), after * MIB):
        assert after <= 1.25 * new

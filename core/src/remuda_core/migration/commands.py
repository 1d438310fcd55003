"""Which command a live migration takes in which phase: the table of ControlMigration's comment, as data.

Pure. The agent of the source host, which alone sees the phase, asks it.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from remuda_core.errors import Reason, RemudaError


class Command(StrEnum):
    """Named as the fields of remuda.agent.v1.MigrateRequest."""

    SET_BANDWIDTH = "set_bandwidth"
    SET_MAX_DOWNTIME = "set_max_downtime"
    SWITCH_TO_POST_COPY = "switch_to_post_copy"
    PAUSE_AND_FINISH = "pause_and_finish"
    CANCEL = "cancel"


class Phase(StrEnum):
    """Names of remuda.compute.v1.MigrationProgress.Phase without their prefix, in order."""

    PREPARING = "PREPARING"
    DISKS = "DISKS"
    MEMORY = "MEMORY"
    SWITCH_OVER = "SWITCH_OVER"
    POST_COPY = "POST_COPY"
    FINISHING = "FINISHING"


class Verdict(StrEnum):
    """What is to be done with a command."""

    HOLD = "HOLD"
    """Nothing is copied yet: it is judged when that begins."""
    ACT = "ACT"
    DEFER = "DEFER"
    """The hypervisor is told now; it counts from the memory phase on."""
    REFUSE = "REFUSE"


_EARLY: Mapping[Command, tuple[Verdict, Verdict, Verdict]] = MappingProxyType(
    {  # PREPARING, DISKS, MEMORY; later everything is refused
        Command.SET_BANDWIDTH: (Verdict.HOLD, Verdict.DEFER, Verdict.ACT),
        Command.SET_MAX_DOWNTIME: (Verdict.HOLD, Verdict.ACT, Verdict.ACT),
        Command.SWITCH_TO_POST_COPY: (Verdict.HOLD, Verdict.REFUSE, Verdict.ACT),
        Command.PAUSE_AND_FINISH: (Verdict.HOLD, Verdict.REFUSE, Verdict.ACT),
        Command.CANCEL: (Verdict.ACT, Verdict.ACT, Verdict.ACT),
    }
)
_COLUMN = MappingProxyType({Phase.PREPARING: 0, Phase.DISKS: 1, Phase.MEMORY: 2})


def judge(command: Command, phase: Phase, *, post_copy_allowed: bool) -> Verdict:
    """`post_copy_allowed`: the flag with which the job was started; QEMU takes it at no other time."""
    if command is Command.SWITCH_TO_POST_COPY and not post_copy_allowed:
        return Verdict.REFUSE
    column = _COLUMN.get(phase)
    return Verdict.REFUSE if column is None else _EARLY[command][column]


def refusal(command: Command, phase: Phase, *, post_copy_allowed: bool) -> RemudaError:
    """What whoever sent it is told: COMMAND_REFUSED, with the phase in words and in metadata."""
    if command is Command.SWITCH_TO_POST_COPY and not post_copy_allowed:
        why = "the migration was started without allow_post_copy"
    elif phase is Phase.DISKS:
        why = "disks are still being copied; it is possible in phase MEMORY"
    else:
        why = "the guest has left the source, or is just leaving it"
    return RemudaError(
        Reason.COMMAND_REFUSED,
        f"{command} is not possible in phase {phase}: {why}",
        metadata={"command": command.value, "phase": phase.value},
    )

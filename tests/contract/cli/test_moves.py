"""check-migration and the commands to a migration that runs, over real gRPC."""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from remuda.compute.v1 import instance_pb2, migration_pb2, moving_pb2, operation_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.migration.preflight import preflight_failed
from remuda_core.rpc.status import to_status

Check = moving_pb2.MigrationCheck
Metadata = operation_pb2.OperationMetadata
Result = migration_pb2.CommandResult
PROJECT = "projects/demo"
WEB = "6f1c8a5e-0000-4000-8000-000000000001"
HOST1 = "hosts/aaaaaaaa-0000-4000-8000-000000000001"
HOST2 = "hosts/bbbbbbbb-0000-4000-8000-000000000002"
HOST3 = "hosts/cccccccc-0000-4000-8000-000000000003"
OPERATION = "operations/0e000000-0000-4000-8000-00000000000a"
MIGRATION = f"{PROJECT}/instances/{WEB}/migrations/3a000000-0000-4000-8000-00000000000b"
REMUDA = str(Path(sys.executable).with_name("remuda"))

STORAGE = Check(
    condition=Check.CONDITION_STORAGE,
    verdict=Check.VERDICT_FAIL,
    observed_source="pool shared, uid 1",
    observed_target="pool shared, uid 2",
    required="the same pool on both",
    fix="mount the pool on host3",
    duration_ms=41,
)


def good(condition: "Check.Condition.ValueType") -> moving_pb2.MigrationCheck:
    return Check(condition=condition, verdict=Check.VERDICT_PASS, observed_target="9.0.0")


def candidates() -> list[moving_pb2.MigrationCandidate]:
    skew = Check(
        condition=Check.CONDITION_LIBVIRT_VERSION,
        verdict=Check.VERDICT_WARN,
        observed_source="9.0.0",
        observed_target="9.1.0",
        required="equal versions",
    )
    config_drive = Check(
        condition=Check.CONDITION_CONFIG_DRIVE, verdict=Check.VERDICT_NOT_APPLICABLE, observed_source="none"
    )
    return [
        moving_pb2.MigrationCandidate(
            host=HOST2,
            display_name="host2",
            kind=migration_pb2.Migration.KIND_LIVE_SHARED,
            verdict=Check.VERDICT_WARN,
            probed=True,
            checks=[skew, good(Check.CONDITION_STORAGE), config_drive, good(Check.CONDITION_NETWORK)],
            expected_duration=Duration(seconds=12),
        ),
        moving_pb2.MigrationCandidate(
            host=HOST3,
            display_name="host3",
            kind=migration_pb2.Migration.KIND_LIVE_BLOCK,
            verdict=Check.VERDICT_FAIL,
            probed=True,
            checks=[good(Check.CONDITION_LIBVIRT_VERSION), STORAGE],
        ),
    ]


def test_check_migration_is_a_table_with_the_worst_on_top_and_says_how_to_repair_it(gateway: Any) -> None:
    gateway.state.check = moving_pb2.CheckMigrationResponse(source_host=HOST1, candidates=candidates())
    done = gateway.run("instance", "check-migration", "web-1", "--allow-version-skew", "--max-downtime", "1s")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "web-1 can move from host1 to host2 (about 12.0 s)",
        "",
        "HOST   VERDICT  HOW     TAKES   WHY",
        "host2  WARN     shared  12.0 s  LIBVIRT_VERSION",
        "host3  FAIL     block   -       STORAGE",
        "",
        "FAIL  host3  STORAGE  (41 ms)",
        "      source: pool shared, uid 1",
        "      target: pool shared, uid 2",
        "      needed: the same pool on both",
        "      fix:    mount the pool on host3",
        "",
        "WARN  host2  LIBVIRT_VERSION",
        "      source: 9.0.0",
        "      target: 9.1.0",
        "      needed: equal versions",
        "",
        "ok wherever it was checked: NETWORK",
    ]
    (asked,) = gateway.state.asked("CheckMigration")
    assert asked == moving_pb2.CheckMigrationRequest(
        name=f"{PROJECT}/instances/{WEB}", allow_version_skew=True, max_downtime_ms=1000
    )


def test_check_migration_has_every_condition_of_every_host_when_that_is_wanted(gateway: Any) -> None:
    gateway.state.check = moving_pb2.CheckMigrationResponse(source_host=HOST1, candidates=candidates())
    lines = gateway.run("instance", "check-migration", "web-1", "-o", "wide").out.splitlines()
    assert lines[6:12] == [
        "CONDITION        host2  host3",
        "STORAGE          ok     FAIL",
        "LIBVIRT_VERSION  WARN   ok",
        "CONFIG_DRIVE     n/a    -",
        "NETWORK          ok     -",
        "",
    ]
    assert "ok  host2  NETWORK" in lines


def test_check_migration_of_one_host_says_at_once_what_speaks_against_it(gateway: Any) -> None:
    gateway.state.check = moving_pb2.CheckMigrationResponse(source_host=HOST1, candidates=candidates()[1:])
    done = gateway.run("instance", "check-migration", "web-1")
    assert done.code == 4
    assert done.out.startswith("web-1 cannot move from host1 to host3: STORAGE\n")


def test_check_migration_ends_with_4_when_no_host_is_fit(gateway: Any) -> None:
    gateway.state.check = moving_pb2.CheckMigrationResponse(
        source_host=HOST1, candidates=[candidates()[1], moving_pb2.MigrationCandidate(host=HOST2)]
    )
    done = gateway.run("instance", "check-migration", "web-1")
    assert done.code == 4
    assert done.out.startswith("web-1 cannot move from host1: none of 2 hosts is fit\n")
    assert "web-1 cannot move to any host as things are" in done.err


def test_a_host_that_was_not_probed_is_not_called_fit(gateway: Any) -> None:
    unprobed = candidates()[0]
    unprobed.probed, unprobed.verdict = False, Check.VERDICT_PASS
    gateway.state.check = moving_pb2.CheckMigrationResponse(candidates=[unprobed])
    done = gateway.run("instance", "check-migration", "web-1")
    assert done.code == 4
    assert "host2  not probed  shared" in done.out


def test_check_migration_is_json_with_the_same_exit_code_and_names_for_scripts(gateway: Any) -> None:
    gateway.state.check = moving_pb2.CheckMigrationResponse(source_host=HOST1, candidates=candidates())
    done = gateway.run("instance", "check-migration", "web-1", "-o", "json")
    assert done.code == 0
    assert json.loads(done.out)["candidates"][1]["checks"][1]["fix"] == "mount the pool on host3"
    assert gateway.run("instance", "check-migration", "web-1", "-o", "name").out == "host2\n"
    del gateway.state.check.candidates[0]
    assert gateway.run("instance", "check-migration", "web-1", "-o", "json").code == 4


def test_an_owner_who_may_not_see_hosts_gets_numbered_lines(gateway: Any) -> None:
    nameless = [
        moving_pb2.MigrationCandidate(
            verdict=verdict, probed=True, checks=[Check(condition=Check.CONDITION_STORAGE, verdict=verdict)]
        )
        for verdict in (Check.VERDICT_PASS, Check.VERDICT_FAIL)
    ]
    gateway.state.check = moving_pb2.CheckMigrationResponse(candidates=nameless)
    done = gateway.run("instance", "check-migration", "web-1")
    assert done.out.splitlines() == [
        "web-1 can move to #1",
        "",
        "HOST  VERDICT  HOW  TAKES  WHY",
        "#1    ok       -    -      -",
        "#2    FAIL     -    -      STORAGE",
    ]


def test_a_move_that_the_preflight_refuses_shows_the_same_rows(gateway: Any) -> None:
    candidate = moving_pb2.MigrationCandidate(
        host=HOST2, display_name="host2", verdict=Check.VERDICT_FAIL, probed=True, checks=[STORAGE]
    )
    gateway.state.refusals["LiveMigrateInstance"] = preflight_failed([candidate])
    done = gateway.run("instance", "live-migrate", "web-1", "--to", "host2")
    assert done.code == 4
    assert "FAIL  host2  STORAGE" in done.err
    assert "seen:   source: pool shared, uid 1; target: pool shared, uid 2" in done.err
    assert "needed: the same pool on both\n" in done.err
    assert "fix:    mount the pool on host3" in done.err
    assert "try: remuda instance check-migration web-1" in done.err


def test_an_operation_shows_what_its_preflight_saw(gateway: Any) -> None:
    operation = operations_pb2.Operation(name=OPERATION, done=True)
    operation.metadata.Pack(Metadata(action="LiveMigrateInstance", preflight=candidates()[1]))
    gateway.state.operations = {OPERATION: operation}
    lines = gateway.run("operation", "show", "0e").out.splitlines()
    assert "host3  FAIL     block  -      STORAGE" in lines
    assert "      fix:    mount the pool on host3" in lines
    assert "ok wherever it was checked: LIBVIRT_VERSION" in lines
    assert not [line for line in lines if "check_time" in line], "not every row, field by field"


def test_live_migrate_passes_on_what_is_allowed_and_its_priority(gateway: Any) -> None:
    done = gateway.run(
        *("instance", "live-migrate", "web-1", "--no-wait", "--allow-post-copy"),
        *("--allow-version-skew", "--priority", "maintenance"),
    )
    assert done.code == 0, done.err
    (asked,) = gateway.state.asked("LiveMigrateInstance")
    assert asked.allow_post_copy
    assert asked.allow_version_skew
    assert asked.priority == moving_pb2.LiveMigrateInstanceRequest.PRIORITY_MAINTENANCE


# --- commands ---


def moving(gateway: Any, *, migration: str = MIGRATION, action: str = "LiveMigrateInstance") -> None:
    """web-1 is on its way."""
    operation = operations_pb2.Operation(name=OPERATION)
    operation.metadata.Pack(
        Metadata(action=action, migration=migration, target=f"{PROJECT}/instances/{WEB}", phase="guest_moved")
    )
    gateway.state.operations = {OPERATION: operation}
    gateway.state.instances[f"{PROJECT}/instances/{WEB}"].operation = OPERATION


def result(effect: "Result.Effect.ValueType", observed: str = "", **fields: Any) -> Result:
    return Result(
        effect=effect, observed=observed, phase=migration_pb2.MigrationProgress.PHASE_MEMORY, **fields
    )


@pytest.mark.parametrize(
    ("words", "kind", "value"),
    [
        (["set-bandwidth", "web-1", "8"], "set_bandwidth", migration_pb2.SetBandwidth(mib_per_second=8)),
        (
            ["set-max-downtime", "web-1", "2s"],
            "set_max_downtime",
            migration_pb2.SetMaxDowntime(max_downtime_ms=2000),
        ),
        (["switch-to-post-copy", "web-1"], "switch_to_post_copy", migration_pb2.SwitchToPostCopy()),
        (["pause-and-finish", MIGRATION], "pause_and_finish", migration_pb2.PauseAndFinish()),
        (["cancel", "web-1"], "cancel", migration_pb2.GiveUp()),
    ],
)
def test_each_verb_is_one_command_and_prints_what_was_seen(
    gateway: Any, words: list[str], kind: str, value: object
) -> None:
    moving(gateway)
    gateway.state.migrations[MIGRATION].operation = OPERATION
    gateway.state.answers = [result(Result.EFFECT_APPLIED, "7.9 MiB/s are sent")]
    done = gateway.run("migration", *words)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{words[0]} ")
    assert done.out.endswith(": applied (MEMORY): 7.9 MiB/s are sent\n")
    (attach,) = gateway.state.asked("ControlMigration")
    assert attach.attach.name == MIGRATION
    (command,) = gateway.state.commands
    assert getattr(command, kind) == value
    assert command.WhichOneof("command") == kind
    assert command.command_id


def test_a_command_that_counts_later_is_no_failure_and_json_is_the_result(gateway: Any) -> None:
    moving(gateway)
    gateway.state.answers = [result(Result.EFFECT_DEFERRED_TO_MEMORY_PHASE, "disks are on their way")]
    done = gateway.run("migration", "set-bandwidth", "web-1", "8", "-o", "json")
    assert done.code == 0
    assert json.loads(done.out)["effect"] == "EFFECT_DEFERRED_TO_MEMORY_PHASE"


def test_a_command_without_effect_says_so_and_fails(gateway: Any) -> None:
    moving(gateway)
    gateway.state.answers = [result(Result.EFFECT_NOT_EFFECTIVE, "97 MiB/s are sent after 5 s")]
    done = gateway.run("migration", "set-bandwidth", "web-1", "8")
    assert done.code == 1
    assert "taken by libvirt, but the copy does not follow it (MEMORY): 97 MiB/s are sent" in done.err


def test_a_refused_command_names_the_reason_and_ends_with_4(gateway: Any) -> None:
    moving(gateway)
    error = RemudaError(Reason.COMMAND_REFUSED, "disks are still being copied")
    gateway.state.answers = [result(Result.EFFECT_REFUSED, error=to_status(error))]
    done = gateway.run("migration", "switch-to-post-copy", "web-1")
    assert done.code == 4
    assert "refused, nothing was changed (MEMORY): disks are still being copied (COMMAND_REFUSED)" in done.err


def test_a_command_survives_a_broken_stream_under_its_id(gateway: Any) -> None:
    moving(gateway)
    gateway.state.answers = [grpc.StatusCode.UNAVAILABLE, result(Result.EFFECT_APPLIED)]
    done = gateway.run("migration", "set-bandwidth", "web-1", "8")
    assert done.code == 0, done.err
    first, second = gateway.state.commands
    assert first == second
    clients = {asked.attach.client_id for asked in gateway.state.asked("ControlMigration")}
    assert (len(clients), "" in clients) == (1, False), "ids are known by whose they are"
    assert "the connection broke" in done.err


def test_an_instance_that_is_not_moved_takes_no_commands(gateway: Any) -> None:
    done = gateway.run("migration", "set-bandwidth", "web-1", "8")
    assert done.code == 4
    assert "web-1 is not being moved" in done.err
    moving(gateway, action="StopInstance")
    done = gateway.run("migration", "pause-and-finish", "web-1")
    assert "StopInstance goes on with it" in done.err
    assert gateway.run("migration", "cancel", "nothing-like-it").code == 3


def test_a_move_that_waits_for_its_turn_can_be_cancelled_and_not_steered(gateway: Any) -> None:
    moving(gateway, migration="")
    done = gateway.run("migration", "set-bandwidth", "web-1", "8")
    assert done.code == 4
    assert "has not begun" in done.err
    ended = operations_pb2.Operation(name=OPERATION, done=True)
    ended.metadata.Pack(Metadata(state=Metadata.STATE_CANCELLED, action="LiveMigrateInstance"))
    gateway.state.watches = [[ended]]
    done = gateway.run("migration", "cancel", "web-1")
    assert done.code == 0, done.err
    assert gateway.state.asked("CancelOperation")


def test_values_out_of_range_are_refused_before_anything_is_asked(gateway: Any) -> None:
    assert gateway.run("migration", "set-max-downtime", "web-1", "61s").code == 2
    assert gateway.run("migration", "set-bandwidth", "web-1", "-1").code == 2
    assert not gateway.state.commands


def test_control_without_a_terminal_names_the_plain_verbs(gateway: Any) -> None:
    moving(gateway)
    done = gateway.run("migration", "control", "web-1")
    assert done.code == 2
    assert "remuda migration set-bandwidth web-1 MIB/S" in done.err


def test_keys_steer_on_a_terminal_and_q_leaves_it_running(gateway: Any) -> None:
    moving(gateway)
    gateway.state.answers = [
        result(Result.EFFECT_APPLIED, "the pause may be 600 ms"),
        result(Result.EFFECT_APPLIED, "the guest stands still"),
    ]
    gateway.state.watches = [[gateway.state.operations[OPERATION]]]
    leader, follower = os.openpty()
    running = subprocess.Popen(
        # As a child of something that was started in the background. Not by code between fork and exec: in a
        # process with a gRPC server its threads come back there and find their files closed.
        ["env", "--ignore-signal=INT", REMUDA, "migration", "control", "web-1"],
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "120"},
    )
    os.close(follower)
    try:
        shown = until(leader, "q leave")
        os.write(leader, b"D")
        until(leader, "the pause may be 600 ms")
        os.write(leader, b"f")
        until(leader, "f again to pause the guest")
        os.write(leader, b"f")
        until(leader, "the guest stands still")
        os.write(leader, b"q")
        shown = until(leader, "it goes on; watch it with")
        assert running.wait(90) == 0, shown
    finally:
        running.kill()
        running.wait(30)
        os.close(leader)
    first, second = gateway.state.commands
    assert first.set_max_downtime.max_downtime_ms == 600
    assert second.HasField("pause_and_finish")


def until(terminal: int, words: str, seconds: float = 90.0) -> str:
    """What the terminal shows up to these words."""
    shown, give_up = "", time.monotonic() + seconds
    while words not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, give_up - time.monotonic()))
        assert ready, f"{words!r} was not shown: ... {shown[-1500:]!r}"
        try:
            shown += os.read(terminal, 65536).decode(errors="replace")
        except OSError as error:  # EIO: nobody has the other end any more
            raise AssertionError(f"it ended before {words!r} was shown: ... {shown[-1500:]!r}") from error
    return shown


def test_a_queued_move_says_whom_it_waits_for(gateway: Any) -> None:
    waiting = operations_pb2.Operation(name=OPERATION)
    queue = operation_pb2.QueueProgress(position=2, limit=f"outgoing of {HOST1}", allowed=2)
    waiting.metadata.Pack(
        Metadata(
            state=Metadata.STATE_RUNNING,
            action="LiveMigrateInstance",
            target=f"{PROJECT}/instances/{WEB}",
            phase="capacity_reserved",
            progress=operation_pb2.Progress(message="waiting for its turn", queue=queue),
        )
    )
    ended = operations_pb2.Operation(name=OPERATION, done=True)
    ended.metadata.Pack(
        Metadata(state=Metadata.STATE_DONE, action="LiveMigrateInstance", migration=MIGRATION)
    )
    ended.response.Pack(instance_pb2.Instance(display_name="web-1"))
    gateway.state.watches = [[waiting, ended]]
    done = gateway.run("instance", "live-migrate", "web-1")
    assert done.code == 0, done.err
    assert "waiting for its turn: 2nd, host1 may send 2 at a time" in done.err

"""What takes time: waiting, progress, and every way that waiting can end, over real gRPC."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from remuda.compute.v1 import instance_pb2, migration_pb2, operation_pb2
from remuda_cli.failure import Failure
from remuda_cli.progress.display import NdjsonDisplay
from remuda_core.errors import Reason, RemudaError, instance_busy
from remuda_core.rpc.status import to_status

Metadata = operation_pb2.OperationMetadata
Progress = migration_pb2.MigrationProgress
PROJECT = "projects/demo"
WEB = "6f1c8a5e-0000-4000-8000-000000000001"
HOST2 = "bbbbbbbb-0000-4000-8000-000000000002"
OPERATION = "0e000000-0000-4000-8000-00000000000a"
MIGRATION = f"{PROJECT}/instances/{WEB}/migrations/3a000000-0000-4000-8000-00000000000b"


def operation(
    state: "Metadata.State.ValueType" = Metadata.STATE_RUNNING,
    *,
    action: str = "LiveMigrateInstance",
    **fields: Any,
) -> operations_pb2.Operation:
    target = f"{PROJECT}/instances/{WEB}"
    migration = MIGRATION if action == "LiveMigrateInstance" else ""
    metadata = Metadata(
        state=state,
        action=action,
        target=target,
        migration=migration,
        create_time=Timestamp(seconds=1000),
        **fields,
    )
    made = operations_pb2.Operation(name=f"operations/{OPERATION}")
    made.metadata.Pack(metadata)
    return made


def done(action: str = "LiveMigrateInstance", host: str = f"hosts/{HOST2}") -> operations_pb2.Operation:
    made = operation(Metadata.STATE_DONE, action=action, end_time=Timestamp(seconds=1014))
    made.done = True
    made.response.Pack(
        instance_pb2.Instance(
            name=f"{PROJECT}/instances/{WEB}",
            uid=WEB,
            display_name="web-1",
            host=host,
            state=instance_pb2.Instance.STATE_RUNNING,
        )
    )
    return made


def failed(error: RemudaError, action: str = "LiveMigrateInstance") -> operations_pb2.Operation:
    made = operation(Metadata.STATE_FAILED, action=action)
    made.done = True
    made.error.CopyFrom(to_status(error))
    return made


def copying(phase: "Progress.Phase.ValueType", percent: int, **fields: Any) -> operations_pb2.Operation:
    detail = Progress(
        phase=phase, memory_total_bytes=512 << 20, throughput_bytes_per_second=100 << 20, **fields
    )
    return operation(phase="migrated", progress=operation_pb2.Progress(percent=percent, migration=detail))


def moves() -> list[Any]:
    return [
        operation(Metadata.STATE_PENDING),
        copying(Progress.PHASE_DISKS, 10, disk_total_bytes=1 << 30, disk_remaining_bytes=1 << 29),
        copying(Progress.PHASE_MEMORY, 60, iteration=2, memory_remaining_bytes=200 << 20, eta_ms=2000),
        copying(
            Progress.PHASE_MEMORY,
            61,
            iteration=3,
            does_not_converge=True,
            dirty_bytes_per_second=130 << 20,
        ),
        copying(Progress.PHASE_SWITCH_OVER, 99),
        done(),
    ]


def test_a_live_migration_says_phases_bytes_rates_and_the_measured_downtime(gateway: Any) -> None:
    gateway.state.watches = [moves()]
    ended = gateway.run("instance", "live-migrate", "web-1", "--to", "host2", "--max-downtime", "250ms")
    assert ended.code == 0, ended.err
    request = gateway.state.asked("LiveMigrateInstance")[0]
    assert request.target_host == f"hosts/{HOST2}"
    assert request.max_downtime_ms == 250
    told = ended.err
    assert "live-migrating web-1, host1 -> host2" in told
    assert "waiting for a scheduler" in told
    assert "512.0 MiB left of 1.0 GiB" in told
    assert "200.0 MiB left of 512.0 MiB, pass 2; 100.0 MiB/s; ETA 2.0 s" in told
    assert "does not converge, because 130.0 MiB/s are rewritten and 100.0 MiB/s sent" in told
    assert "switching over" in told
    assert told.splitlines()[-1] == (
        "web-1 moved from host1 to host2 in 14.0 s; measured downtime 41 ms; sent 600.0 MiB of memory"
    )
    assert "host2" in ended.out
    assert "\x1b" not in ended.out + ended.err


def test_json_is_every_message_of_the_watch_one_per_line(gateway: Any) -> None:
    gateway.state.watches = [moves()]
    ended = gateway.run("instance", "live-migrate", "web-1", "-o", "json")
    messages = [json.loads(line)["operation"] for line in ended.out.splitlines()]
    assert len(messages) == len(moves())
    assert messages[2]["metadata"]["progress"]["migration"]["iteration"] == 2
    assert messages[-1]["done"] is True
    assert messages[-1]["response"]["displayName"] == "web-1"


def test_downtime_that_nobody_measured_is_not_called_zero(gateway: Any) -> None:
    gateway.state.watches = [[done()]]
    gateway.state.migrations[MIGRATION].ClearField("downtime_ms")
    assert "downtime not known" in gateway.run("instance", "live-migrate", "web-1").err


def test_a_watch_that_breaks_is_opened_again(gateway: Any) -> None:
    gateway.state.watches = [
        [operation(), grpc.StatusCode.UNAVAILABLE],
        [operation(phase="migrated"), grpc.StatusCode.CANCELLED],
        [done()],
    ]
    ended = gateway.run("instance", "live-migrate", "web-1")
    assert ended.code == 0
    assert ended.err.count("the operation goes on, connecting again") == 2
    assert len(gateway.state.asked("WatchOperation")) == 3
    assert len(gateway.state.asked("LiveMigrateInstance")) == 1


def test_an_operation_that_fails_is_exit_code_1_with_reason_and_next_commands(gateway: Any) -> None:
    gateway.state.watches = [[failed(RemudaError(Reason.MIGRATION_TIMEOUT, "it did not converge in 60 s"))]]
    ended = gateway.run("instance", "live-migrate", "web-1")
    assert ended.code == 1
    assert "it did not converge in 60 s (MIGRATION_TIMEOUT)" in ended.err
    assert "--auto-converge" in ended.err
    assert f"try: remuda operation show {OPERATION}" in ended.err
    assert ended.out == ""


def test_a_busy_instance_is_exit_code_4_and_names_the_operation_that_holds_it(gateway: Any) -> None:
    gateway.state.refusals["StartInstance"] = instance_busy("projects/demo/instances/x", "operations/holder")
    ended = gateway.run("instance", "start", "web-1")
    assert ended.code == 4
    assert "INSTANCE_BUSY" in ended.err
    assert "try: remuda operation watch holder" in ended.err


def test_a_timeout_ends_the_waiting_with_124_and_not_the_operation(gateway: Any) -> None:
    gateway.state.watches = [[operation()]]
    ended = gateway.run("instance", "live-migrate", "web-1", "--timeout", "2s")
    assert ended.code == 124
    assert f"operations/{OPERATION} goes on" in ended.err
    assert f"try: remuda operation watch {OPERATION}" in ended.err
    assert not gateway.state.asked("CancelOperation")


def test_ctrl_c_ends_the_waiting_with_130_and_says_how_to_attach_again(gateway: Any) -> None:
    gateway.state.watches = [[operation()]]
    process = subprocess.Popen(
        # A suite that was started in the background ignores SIGINT, and children inherit that. Not put right
        # between fork and exec: there, gRPC's threads come back and find their files closed.
        [
            "env",
            "--default-signal=INT",
            sys.executable,
            "-m",
            "remuda_cli",
            "instance",
            "live-migrate",
            "web-1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    deadline = time.monotonic() + 60
    while not gateway.state.asked("WatchOperation"):
        assert time.monotonic() < deadline, f"it never watched; it asked {gateway.state.requests}"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "goes on" in err
    assert f"try: remuda operation watch {OPERATION}" in err
    assert f"try: remuda operation cancel {OPERATION}" in err


def test_no_wait_prints_the_operation_and_returns(gateway: Any) -> None:
    ended = gateway.run("instance", "stop", "web-1", "--no-wait", "--grace", "5s")
    assert ended.out == f"operations/{OPERATION}\n"
    assert ended.code == 0
    assert gateway.state.asked("StopInstance")[0].grace.seconds == 5
    assert not gateway.state.asked("WatchOperation")


@pytest.mark.parametrize("verb", ["start", "stop", "live-migrate", "delete"])
def test_a_dry_run_validates_only_and_neither_asks_nor_waits(verb: str, gateway: Any) -> None:
    ended = gateway.run("instance", verb, "web-1", "--dry-run")
    rpc = {"live-migrate": "LiveMigrateInstance"}.get(verb, f"{verb.title()}Instance")
    assert ended.code == 0
    assert "nothing was done" in ended.err
    assert gateway.state.asked(rpc)[0].validate_only
    assert not gateway.state.asked("WatchOperation")


@pytest.mark.parametrize("verb", ["create", "launch"])
def test_a_launch_resolves_names_and_shows_the_instance_that_runs(
    verb: str, gateway: Any, tmp_path: Any
) -> None:
    user_data = tmp_path / "user-data"
    user_data.write_bytes(b"#cloud-config\n")
    gateway.state.watches = [[operation(action="CreateInstance"), done("CreateInstance")]]
    ended = gateway.run(
        "instance",
        verb,
        "web-1",
        "--flavor",
        "sm",
        "--image",
        "debian",
        "--network",
        "lan=10.78.0.9",
        "--host",
        "host2",
        "--label",
        "tier=web",
        "--user-data",
        str(user_data),
    )
    assert ended.code == 0, ended.err
    request = gateway.state.asked("CreateInstance")[0]
    assert request.instance.flavor == "flavors/small"
    assert request.instance.image == f"{PROJECT}/images/{WEB}"
    assert request.instance.network_interfaces[0].address == "10.78.0.9"
    assert request.instance.user_data == b"#cloud-config\n"
    assert request.host == f"hosts/{HOST2}"
    assert "RUNNING" in ended.out
    assert "CreateInstance web-1: done in 14.0 s" in ended.err


def test_deleting_waits_until_it_is_gone(gateway: Any) -> None:
    gateway.state.watches = [[done("DeleteInstance")]]
    ended = gateway.run("instance", "delete", "web-1", "--yes")
    assert ended.code == 0
    assert "DeleteInstance web-1: done" in ended.err


def test_operations_are_listed_shown_and_waited_for_by_prefix(gateway: Any) -> None:
    assert "LiveMigrateInstance" in gateway.run("operation", "list").out
    shown = gateway.run("operation", "show", "0e").out
    assert "action:" in shown
    assert "RUNNING" in shown
    gateway.state.watches = [[done()]]
    waited = gateway.run("operation", "wait", "0e", "-o", "json")
    assert json.loads(waited.out)["done"] is True


def test_watching_an_operation_gives_ndjson_too(gateway: Any) -> None:
    gateway.state.watches = [[operation(), done()]]
    assert len(gateway.run("operation", "watch", "0e", "-o", "json").out.splitlines()) == 2


def test_a_cancel_that_came_in_time_is_a_success(gateway: Any) -> None:
    cancelled = failed(RemudaError(Reason.CANCELLED, "cancelled and undone"))
    cancelled.metadata.Pack(Metadata(state=Metadata.STATE_CANCELLED, action="LiveMigrateInstance"))
    gateway.state.watches = [[cancelled]]
    ended = gateway.run("operation", "cancel", "0e")
    assert ended.code == 0
    assert len(gateway.state.asked("CancelOperation")) == 1


def test_a_cancel_that_came_too_late_is_a_conflict(gateway: Any) -> None:
    gateway.state.watches = [[done()]]
    ended = gateway.run("operation", "cancel", "0e")
    assert ended.code == 4
    assert "it had already done its work" in ended.err


def test_watching_instances_prints_rows_for_changes_only_also_over_a_broken_connection(gateway: Any) -> None:
    change = instance_pb2.WatchInstancesResponse
    web, worker = gateway.state.instances.values()
    stopped = instance_pb2.Instance()
    stopped.CopyFrom(web)
    stopped.state = instance_pb2.Instance.STATE_STOPPED
    gateway.state.instance_watches = [
        [
            change(kind=change.KIND_UPSERT, instance=web),
            change(kind=change.KIND_UPSERT, instance=worker),
            change(kind=change.KIND_SYNCED),
            change(kind=change.KIND_UPSERT, instance=stopped),
            grpc.StatusCode.UNAVAILABLE,
        ],
        [
            change(kind=change.KIND_UPSERT, instance=stopped),
            change(kind=change.KIND_SYNCED),
            grpc.StatusCode.PERMISSION_DENIED,
        ],
    ]
    ended = gateway.run("instance", "watch")
    rows = [line.split() for line in ended.out.splitlines()]
    assert [row[:2] for row in rows] == [
        ["NAME", "STATE"],
        ["web-1", "RUNNING"],
        ["worker", "RUNNING"],
        ["web-1", "STOPPED"],
        ["worker", "RUNNING"],
    ]
    assert rows[-1][-1] == "(deleted)"
    assert ended.code == 6


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self, _seconds: float) -> None:
        self.now += 25.0


def test_a_gateway_that_stays_away_while_an_operation_is_watched_is_given_up_in_bounded_time(
    gateway: Any,
) -> None:
    from remuda_cli.verb import session_of
    from remuda_cli.wait import follow

    notes: list[str] = []
    clock = Clock()
    gateway.state.watches = [[grpc.StatusCode.CANCELLED]] * 20
    session = session_of()
    display = NdjsonDisplay(write=notes.append, note=notes.append)
    with pytest.raises(Failure) as caught:
        follow(session.gateway, f"operations/{OPERATION}", display, clock=clock, pause=clock.pause)
    session.close()
    assert "the script says so" in caught.value.message
    assert len(notes) == 3


def test_ctrl_c_before_the_first_answer_is_looked_at_says_how_to_attach_again(gateway: Any) -> None:
    from remuda_cli.verb import session_of
    from remuda_cli.wait import follow

    def interrupted() -> float:
        raise KeyboardInterrupt

    session, notes = session_of(), list[str]()
    display = NdjsonDisplay(write=notes.append, note=notes.append)
    with pytest.raises(Failure) as caught:
        follow(session.gateway, f"operations/{OPERATION}", display, clock=interrupted)
    session.close()
    assert caught.value.exit_code == 130
    assert f"operations/{OPERATION} goes on" in caught.value.message
    assert f"remuda operation watch {OPERATION}" in caught.value.hints


def test_a_list_without_a_stream_is_asked_again_and_prints_what_changed(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 0

    def change(_seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            gateway.state.hosts[f"hosts/{HOST2}"].cordoned = True
        elif rounds == 2:
            gateway.state.hosts.pop(f"hosts/{HOST2}")
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("remuda_cli.watching.time.sleep", change)
    ended = gateway.run("host", "list", "-w")
    rows = [line.split() for line in ended.out.splitlines()]
    assert [row[:2] for row in rows] == [
        ["NAME", "STATE"],
        ["host1", "UP"],
        ["host2", "UP"],
        ["host2", "UP,CORDONED"],
        ["host2", "UP,CORDONED"],
    ]
    assert rows[-1][-1] == "(deleted)"
    assert ended.code == 130

"""The live-migration display, without a terminal, a clock or a gateway."""

import io
from typing import Any

import pytest
from google.longrunning import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2
from remuda.compute.v1 import migration_pb2, operation_pb2
from remuda_cli.progress import lines
from remuda_cli.progress.display import NdjsonDisplay, PlainDisplay
from remuda_cli.progress.fresh import FreshProgress
from remuda_cli.progress.lines import Subject
from remuda_cli.progress.panel import operation_panel
from remuda_cli.transfer.meter import Meter
from rich.console import Console

Metadata = operation_pb2.OperationMetadata
Progress = migration_pb2.MigrationProgress
Step = operation_pb2.OperationStep
WEB = Subject(target="web-1", source_host="host1", target_host="host2")
MIB = 1 << 20


def moving(
    phase: "Progress.Phase.ValueType", percent: int = 40, **fields: Any
) -> operation_pb2.OperationMetadata:
    values: dict[str, Any] = {
        "phase": phase,
        "memory_total_bytes": 512 * MIB,
        "throughput_bytes_per_second": 100 * MIB,
        **fields,
    }
    return Metadata(
        action="LiveMigrateInstance",
        state=Metadata.STATE_RUNNING,
        phase="memory_moved",
        create_time=Timestamp(seconds=1000),
        progress=operation_pb2.Progress(percent=percent, migration=Progress(**values)),
        steps=[
            Step(
                name="target_prepared",
                state=Step.STATE_DONE,
                host="hosts/b",
                start_time=Timestamp(seconds=1000),
                end_time=Timestamp(seconds=1001),
            ),
            Step(
                name="memory_moved",
                state=Step.STATE_RUNNING,
                host="hosts/a",
                start_time=Timestamp(seconds=1001),
            ),
        ],
    )


def drawn(metadata: operation_pb2.OperationMetadata, *, note: str = "", width: int = 120) -> str:
    console = Console(width=width, record=True, force_terminal=True, file=io.StringIO())
    console.print(
        operation_panel(metadata, WEB, lambda name: f"host-{name[-1]}", now_seconds=1005.0, note=note)
    )
    return console.export_text()


def test_the_panel_shows_route_steps_bytes_rates_eta_and_expected_downtime() -> None:
    text = drawn(
        moving(
            Progress.PHASE_MEMORY,
            iteration=2,
            memory_processed_bytes=600 * MIB,
            memory_remaining_bytes=128 * MIB,
            dirty_bytes_per_second=8 * MIB,
            eta_ms=1400,
            expected_downtime_ms=120,
            disk_total_bytes=1024 * MIB,
            disk_processed_bytes=1024 * MIB,
        )
    )
    assert "live-migrating web-1, host1 -> host2  5.0 s" in text
    assert "+ target_prepared  host-b  1.0 s" in text
    assert "* memory_moved  host-a  4.0 s" in text
    assert "40 %, copying memory" in text
    assert "1.0 GiB sent, 0 B left of 1.0 GiB" in text
    assert "600.0 MiB sent, 128.0 MiB left of 512.0 MiB, pass 2" in text
    assert "100.0 MiB/s, guest rewrites 8.0 MiB/s, expected downtime 120 ms" in text
    assert "ahead ETA 1.4 s" in text


def test_a_bar_is_as_full_as_what_is_not_left() -> None:
    half = drawn(moving(Progress.PHASE_MEMORY, percent=50, memory_remaining_bytes=256 * MIB))
    memory = next(line for line in half.splitlines() if line.lstrip().startswith("memory"))
    overall = next(line for line in half.splitlines() if "50 %" in line)
    assert memory.count("━") == overall.count("━") > 0
    everything = drawn(moving(Progress.PHASE_MEMORY, memory_remaining_bytes=600 * MIB))
    assert "0 B sent, 600.0 MiB left of 512.0 MiB" in everything


def test_a_migration_that_does_not_converge_says_why_instead_of_an_eta() -> None:
    metadata = moving(
        Progress.PHASE_MEMORY, does_not_converge=True, dirty_bytes_per_second=130 * MIB, eta_ms=5
    )
    why = "does not converge, because 130.0 MiB/s are rewritten and 100.0 MiB/s sent"
    assert why in drawn(metadata, width=200)
    assert why in lines.plain_line(metadata, 3.0)
    assert "ETA" not in lines.plain_line(metadata, 3.0)


def test_an_unknown_eta_is_said_to_be_unknown() -> None:
    assert "ETA not known yet" in lines.plain_line(moving(Progress.PHASE_DISKS), 1.0)


def test_a_step_that_failed_or_is_owed_says_so() -> None:
    metadata = moving(Progress.PHASE_MEMORY)
    metadata.steps[1].state = Step.STATE_FAILED
    metadata.steps[1].error.CopyFrom(status_pb2.Status(message="no route to host"))
    metadata.steps.add(name="target_prepared", state=Step.STATE_OWED, host="hosts/b")
    text = drawn(metadata)
    assert "x memory_moved  host-a  4.0 s  no route to host" in text
    assert "! target_prepared  host-b" in text


def test_the_panel_says_when_a_cancel_was_asked_for_and_when_the_connection_broke() -> None:
    metadata = moving(Progress.PHASE_MEMORY)
    metadata.cancel_requested = True
    text = drawn(metadata, note="connecting again")
    assert "cancel requested" in text
    assert "connecting again" in text


def test_eighty_columns_are_enough_for_every_figure() -> None:
    text = drawn(
        moving(
            Progress.PHASE_MEMORY,
            iteration=12,
            memory_processed_bytes=600 * MIB,
            memory_remaining_bytes=128 * MIB,
            dirty_bytes_per_second=130 * MIB,
            does_not_converge=True,
        ),
        width=80,
    )
    assert "600.0 MiB sent, 128.0 MiB left of 512.0 MiB, pass 12" in text
    assert "does not converge, because 130.0 MiB/s are rewritten and 100.0 MiB/s sent" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_host_that_does_not_answer_is_named_as_what_is_waited_for() -> None:
    metadata = Metadata(state=Metadata.STATE_WAITING_FOR_HOST, phase="target_prepared")
    assert "waiting for a host that does not answer, at target_prepared" in drawn(metadata)


def test_an_operation_that_only_a_person_can_end_says_so() -> None:
    metadata = Metadata(state=Metadata.STATE_WAITING_FOR_OPERATOR, phase="guest_moved")
    assert "waiting for an operator to decide, see the events of the instance" in drawn(metadata)


def test_bytes_of_a_transfer_are_shown_for_other_operations() -> None:
    transfer = operation_pb2.TransferProgress(done_bytes=MIB, total_bytes=4 * MIB)
    metadata = Metadata(
        action="CreateInstance",
        state=Metadata.STATE_RUNNING,
        phase="base_image_fetched",
        progress=operation_pb2.Progress(percent=25, transfer=transfer),
    )
    assert "25 %  1.0 MiB of 4.0 MiB" in drawn(metadata)
    assert lines.plain_line(metadata, 2.0) == "   2.0 s  base_image_fetched 25 %; 1.0 MiB of 4.0 MiB"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"downtime_ms": 41}, "measured downtime 41 ms"),
        ({"downtime_ms": 0}, "measured downtime 0 ms"),
        ({}, "downtime not known"),
        ({"guest_health": migration_pb2.Migration.GUEST_HEALTH_NOT_RUNNING}, "WARNING: its CPUs do not run"),
        ({"memory_bytes": MIB, "disk_bytes": 2 * MIB}, "sent 1.0 MiB of memory and 2.0 MiB of disk"),
    ],
)
def test_the_outcome_tells_what_was_measured(fields: dict[str, Any], words: str) -> None:
    metadata = Metadata(action="LiveMigrateInstance", migration="projects/p/instances/i/migrations/m")
    text = lines.outcome(metadata, WEB, migration_pb2.Migration(**fields), elapsed_seconds=14.2)
    assert text.startswith("web-1 moved from host1 to host2 in 14.2 s")
    assert words in text


def test_a_guest_that_was_asked_to_go_where_it_is_did_not_move() -> None:
    text = lines.outcome(Metadata(action="LiveMigrateInstance"), WEB, None, elapsed_seconds=0.1)
    assert text == "web-1 did not move: it was there already"


def test_a_clock_that_is_behind_the_servers_gives_zero_and_not_less() -> None:
    metadata = Metadata(create_time=Timestamp(seconds=1000))
    assert lines.elapsed(metadata, 990.0) == 0.0
    metadata.end_time.CopyFrom(Timestamp(seconds=1007))
    assert lines.elapsed(metadata, 5000.0) == 7.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def message(metadata: operation_pb2.OperationMetadata) -> operation_pb2.WatchOperationResponse:
    operation = operations_pb2.Operation(name="operations/x")
    operation.metadata.Pack(metadata)
    return operation_pb2.WatchOperationResponse(operation=operation)


def test_plain_lines_come_at_changes_of_phase_and_get_rarer_the_longer_it_takes() -> None:
    written: list[str] = []
    clock = Clock()
    display = PlainDisplay(lambda _: WEB, write=written.append, clock=clock, every_seconds=(1, 10))
    disks, memory = moving(Progress.PHASE_DISKS), moving(Progress.PHASE_MEMORY)
    at = (1.0, 1.5, 2.0, 2.4, 100.0, 109.0, 110.0)
    for seconds in at:
        clock.now = 1000.0 + seconds
        display.update(message(disks if seconds < 2.4 else memory))
    assert written[0] == "live-migrating web-1, host1 -> host2"
    shown = [text.split("  ")[0] for text in (line.lstrip() for line in written[1:])]
    assert shown == ["1.0 s", "2.0 s", "2.4 s", "1 min 40 s", "1 min 50 s"]


def test_progress_of_an_earlier_step_is_not_shown_as_that_of_a_later_one() -> None:
    written: list[str] = []
    clock = Clock()
    display = PlainDisplay(lambda _: WEB, write=written.append, clock=clock)
    memory = moving(Progress.PHASE_MEMORY, memory_remaining_bytes=MIB)
    memory.phase = "guest_moved"
    left_behind = moving(Progress.PHASE_MEMORY, memory_remaining_bytes=MIB)
    left_behind.phase = "ownership_moved"
    for metadata in (memory, left_behind):
        display.update(message(metadata))
    assert "copying memory" in written[1]
    assert written[2].split("  ")[-1] == "ownership_moved"


def test_a_complete_transfer_is_not_shown_to_whoever_begins_to_watch_at_a_later_step() -> None:
    transfer = operation_pb2.TransferProgress(done_bytes=MIB, total_bytes=MIB)
    metadata = Metadata(
        state=Metadata.STATE_RUNNING,
        phase="guest_started",
        progress=operation_pb2.Progress(percent=100, transfer=transfer),
    )
    assert not FreshProgress().of(metadata).HasField("progress")
    metadata.progress.transfer.done_bytes -= 1
    assert FreshProgress().of(metadata).progress.percent == 100


def test_progress_that_goes_on_in_its_own_step_is_shown() -> None:
    fresh = FreshProgress()
    for remaining in (3 * MIB, 2 * MIB, 2 * MIB):
        metadata = moving(Progress.PHASE_MEMORY, memory_remaining_bytes=remaining)
        assert fresh.of(metadata) == metadata


def test_ndjson_is_one_line_per_message() -> None:
    written: list[str] = []
    display = NdjsonDisplay(write=written.append, note=lambda _: None)
    display.update(message(moving(Progress.PHASE_MEMORY)))
    assert len(written) == 1
    assert "\n" not in written[0]
    assert '"phase":"PHASE_MEMORY"' in written[0]


def test_a_meter_without_a_terminal_says_a_line_every_few_seconds_and_rates_only_what_it_moved() -> None:
    written: list[str] = []
    clock = Clock()
    with Meter(
        "uploading x", total=100 * MIB, start=50 * MIB, write=written.append, terminal=False, clock=clock
    ) as meter:
        clock.now += 1
        meter.at(51 * MIB)
        clock.now += 4
        meter.at(60 * MIB)
    assert written == [
        "uploading x: 100.0 MiB, going on at 50.0 MiB",
        "uploading x: 60.0 MiB of 100.0 MiB, 2.0 MiB/s, 20.0 s left",
    ]


def test_a_snapshot_shows_what_is_new_of_the_disk_and_what_it_took() -> None:
    metadata = moving(Progress.PHASE_MEMORY)
    metadata.progress.snapshot.disk_bytes = 40 << 30
    metadata.progress.snapshot.touched_bytes = metadata.progress.snapshot.read_bytes = 600 * MIB
    metadata.progress.snapshot.sent_bytes = metadata.progress.snapshot.stored_bytes = 312 * MIB
    metadata.progress.snapshot.incremental = True
    words = "new 312.0 MiB of 40.0 GiB; read 600.0 MiB of 600.0 MiB touched, 312.0 MiB sent"
    assert f"{words}; since the last snapshot" in lines.plain_line(metadata, 5.0)
    assert words in drawn(metadata)

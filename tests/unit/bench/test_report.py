"""Figures as JSON and as tables."""

from dataclasses import replace

import pytest
from remuda_bench.migration.figures import Figures, Idle, Move, from_json, to_json
from remuda_bench.migration.plan import Kind, Tool
from remuda_bench.migration.report import report

STEPS = {"preflight_passed": 30.0, "guest_moved": 1100.0}


def move(run: int, tool: Tool, **changes: object) -> Move:
    made = Move(
        run=run,
        tool=tool,
        source="host1",
        target="host2",
        job_started_ms=100.0,
        source_paused_ms=900.0,
        target_resumed_ms=1000.0,
        job_ended_ms=1100.0,
        done_ms=1200.0,
        downtime_ms=110,
        elapsed_ms=950,
        memory_bytes=80 << 20,
        disk_bytes=8 << 20,
        iterations=2,
        longest_gap_ms=130.0,
        pings_lost=4,
        cpu_seconds={"api": 0.03, "scheduler-1": 0.05, "agent host1": 0.06, "libvirtd host1": 0.5},
        window_seconds=2.0,
    )
    if tool is Tool.REMUDA:
        made = replace(made, admitted_ms=10.0, steps_ms=STEPS)
    return replace(made, **changes)  # type: ignore[arg-type]


def figures(*moves: Move) -> Figures:
    return Figures(
        date="2026-01-02T03:04:05+00:00",
        machine={"processors": "2", "kernel": "6.1"},
        load={"at the start": 0.25, "at the end": 1.5},
        settings={"runs": 2, "rest_seconds": 31.0},
        took_seconds=300.0,
        commands={Kind.BLOCK: "virsh migrate ..."},
        moves={Kind.BLOCK: moves},
        idle=Idle(seconds=10.0, cpu_seconds={"api": 0.05, "scheduler-1": 0.1, "agent host1": 0.1}),
        resident_bytes={"api": 100 << 20, "etcd": 30 << 20, "libvirtd host1": 20 << 20},
    )


def cells(text: str, name: str) -> list[str]:
    """Of the first table row that begins with `name`."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def both(run: int, **changes: object) -> tuple[Move, Move]:
    return move(run, Tool.REMUDA, **changes), move(run, Tool.VIRSH)


def test_figures_come_back_from_their_json_as_they_were() -> None:
    taken = figures(*both(0), *both(1), *both(2))
    again = from_json(to_json(taken))
    assert again == replace(taken, moves={Kind.BLOCK: list(taken.moves[Kind.BLOCK])})
    assert report(again) == report(taken)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"version": 0}', '{"version": 1}', '{"version": 1, "moves": {"x": []}}']
)
def test_a_file_that_holds_no_figures_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"figures|Kind"):
        from_json(text)


def test_the_warm_up_is_told_apart_and_not_counted() -> None:
    taken = figures(*both(0, job_ended_ms=9100.0, done_ms=9200.0), *both(1), *both(2))
    text = report(taken)
    assert cells(text, "job, from the call to the end of the source's QEMU")[0] == "1000 (1000 to 1000)"
    assert "first move to its target: job 9000" in text


def test_ratios_and_aims_are_shown() -> None:
    slow = move(1, Tool.REMUDA, job_ended_ms=1300.0, done_ms=1800.0)
    text = report(figures(slow, move(1, Tool.VIRSH), *both(2)))
    job = cells(text, "job, from the call to the end of the source's QEMU")
    assert job[2:] == ["1.10 (1.00 to 1.20)", "<= 1.05: MISSED"]
    # 100 before it and 500 after it in one run, 100 and 100 in the other.
    assert cells(text, "both overheads together") == ["400 (200 to 600)", "<= 400: met"]


def test_what_is_unknown_is_said_to_be() -> None:
    text = report(figures(*both(1, downtime_ms=None), *both(2, downtime_ms=None)))
    assert cells(text, "downtime, as libvirt has it")[:3] == ["unknown", "110 (110 to 110)", "unknown"]


def test_processor_time_is_the_control_planes_own_without_what_idling_uses() -> None:
    text = report(figures(*both(1)))
    # 30 + 50 + 60 ms; idling takes 5 + 10 + 10 ms a second, for two seconds. libvirtd is beside it.
    assert cells(text, "control plane together") == ["140 (140 to 140)", "90 (90 to 90)"]
    assert cells(text, "beside it: libvirtd of all hosts")[0] == "500 (500 to 500)"
    assert cells(text, "together") == ["130", "5.0"]

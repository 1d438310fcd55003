"""The bench of migrations runs through, and its report has what it promises. No time is asserted."""

from __future__ import annotations

import itertools

import pytest
from remuda_bench.migration.figures import from_json, to_json
from remuda_bench.migration.plan import Kind, Tool
from remuda_bench.migration.report import COMPARED, OWN, report
from remuda_bench.migration.rounds import Settings, run_bench
from remuda_lab.mesh import Mesh
from remuda_scheduler.sagas.live_migrate import SAGA

pytestmark = pytest.mark.root


def test_one_round_moves_both_guests_and_measures_all_of_it(mesh: Mesh) -> None:
    # As they are kept: rounded.
    figures = from_json(to_json(run_bench(mesh, Settings(runs=1, kinds=(Kind.BLOCK,), warm_up=False))))
    (ours,) = figures.counted(Kind.BLOCK, Tool.REMUDA)
    (theirs,) = figures.counted(Kind.BLOCK, Tool.VIRSH)
    assert list(ours.steps_ms) == [step.name for step in SAGA.steps]
    for one in (ours, theirs):
        moments = [0.0, one.job_started_ms, one.source_paused_ms, one.target_resumed_ms, one.job_ended_ms]
        # Files are dated by the kernel's tick, and the job's start is the date of a file.
        assert all(later >= earlier - 10 for earlier, later in itertools.pairwise(moments)), one
        assert one.done_ms > one.target_resumed_ms
        assert one.memory_bytes > 0
        assert one.disk_bytes > 0
        assert one.downtime_ms is not None
        assert one.elapsed_ms is not None
        assert one.longest_gap_ms > 0
    assert sum(ours.cpu_seconds.values()) > 0
    assert {"api", "scheduler-1", "etcd", "agent host1", "libvirtd host2"} <= set(figures.resident_bytes)
    text = report(figures)
    assert "unknown" not in text
    for row in (*COMPARED, *OWN, *ours.steps_ms):
        assert row in text
    assert report(from_json(to_json(figures))) == text

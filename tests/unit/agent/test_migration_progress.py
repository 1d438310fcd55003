"""Statistics of a job as clients see them."""

import pytest
from remuda.compute.v1.migration_pb2 import MigrationProgress
from remuda_agent.hypervisor import MigrationJobStats
from remuda_agent.migration_progress import phase_of, to_progress
from remuda_core.migration.commands import Phase

MIB = 1 << 20


def test_while_disks_are_copied_the_rate_is_theirs_and_nothing_fails_to_converge() -> None:
    seen = to_progress(
        MigrationJobStats(
            memory_total_bytes=100 * MIB,
            memory_remaining_bytes=100 * MIB,
            disk_total_bytes=50 * MIB,
            disk_processed_bytes=10 * MIB,
            disk_remaining_bytes=40 * MIB,
            disk_bytes_per_second=20 * MIB,
            dirty_bytes_per_second=500 * MIB,
        )
    )
    assert seen.phase == MigrationProgress.PHASE_DISKS
    assert (seen.throughput_bytes_per_second, seen.does_not_converge) == (20 * MIB, False)
    assert seen.eta_ms == 7000


def test_memory_counts_against_what_the_guest_dirties() -> None:
    seen = to_progress(
        MigrationJobStats(
            iteration=2,
            memory_total_bytes=100 * MIB,
            memory_processed_bytes=80 * MIB,
            memory_remaining_bytes=30 * MIB,
            memory_bytes_per_second=20 * MIB,
            dirty_bytes_per_second=10 * MIB,
        )
    )
    assert (seen.phase, seen.iteration, seen.eta_ms) == (MigrationProgress.PHASE_MEMORY, 2, 3000)


def test_a_guest_that_dirties_faster_than_is_sent_has_no_eta() -> None:
    seen = to_progress(
        MigrationJobStats(
            memory_total_bytes=100 * MIB,
            memory_processed_bytes=1,
            memory_remaining_bytes=90 * MIB,
            memory_bytes_per_second=20 * MIB,
            dirty_bytes_per_second=30 * MIB,
        )
    )
    assert seen.does_not_converge
    assert not seen.HasField("eta_ms")


def test_what_fits_in_the_allowed_pause_converges_whatever_is_dirtied() -> None:
    stats = MigrationJobStats(
        memory_total_bytes=100 * MIB,
        memory_processed_bytes=1,
        memory_remaining_bytes=20 * MIB,
        memory_bytes_per_second=20 * MIB,
        dirty_bytes_per_second=30 * MIB,
    )
    assert to_progress(stats).does_not_converge
    assert not to_progress(stats, max_downtime_ms=1500).does_not_converge


@pytest.mark.parametrize(
    ("seen", "phase"),
    [
        (MigrationJobStats(), Phase.PREPARING),
        (MigrationJobStats(memory_total_bytes=9, disk_remaining_bytes=1), Phase.DISKS),
        (MigrationJobStats(memory_total_bytes=9), Phase.MEMORY),
        (MigrationJobStats(memory_total_bytes=9, switching_over=True), Phase.SWITCH_OVER),
        (MigrationJobStats(memory_total_bytes=9, post_copy=True), Phase.POST_COPY),
    ],
)
def test_every_phase_is_told(seen: MigrationJobStats, phase: Phase) -> None:
    assert phase_of(seen) is phase
    assert MigrationProgress.Phase.Name(to_progress(seen).phase) == f"PHASE_{phase}"

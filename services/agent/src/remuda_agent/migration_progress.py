"""A migration's statistics as the protocol tells them. Pure."""

from remuda.compute.v1.migration_pb2 import MigrationProgress

from remuda_agent.hypervisor import MigrationJobStats


def to_progress(stats: MigrationJobStats) -> MigrationProgress:
    """ETA = remaining / (rate - dirty rate); when the guest dirties faster than is sent it never ends.

    The dirty rate counts against memory only: what the guest writes to disks is mirrored as it is written.
    """
    rate = stats.disk_bytes_per_second if stats.copying_disks else stats.memory_bytes_per_second
    remaining = stats.disk_remaining_bytes + stats.memory_remaining_bytes
    dirty = 0 if stats.copying_disks else stats.dirty_bytes_per_second
    progress = MigrationProgress(
        phase=MigrationProgress.PHASE_DISKS if stats.copying_disks else MigrationProgress.PHASE_MEMORY,
        iteration=stats.iteration,
        memory_total_bytes=stats.memory_total_bytes,
        memory_processed_bytes=stats.memory_processed_bytes,
        memory_remaining_bytes=stats.memory_remaining_bytes,
        disk_total_bytes=stats.disk_total_bytes,
        disk_processed_bytes=stats.disk_processed_bytes,
        disk_remaining_bytes=stats.disk_remaining_bytes,
        throughput_bytes_per_second=rate,
        dirty_bytes_per_second=stats.dirty_bytes_per_second,
        does_not_converge=rate > 0 and dirty >= rate,
        expected_downtime_ms=stats.expected_downtime_ms,
        elapsed_ms=stats.elapsed_ms,
    )
    if rate > dirty:
        progress.eta_ms = remaining * 1000 // (rate - dirty)
    return progress

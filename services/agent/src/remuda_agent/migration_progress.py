"""A migration's statistics as the protocol tells them. Pure."""

from remuda.compute.v1.migration_pb2 import MigrationProgress
from remuda_core.migration.commands import Phase
from remuda_core.migration.progress import Sample, does_not_converge, eta_ms

from remuda_agent.hypervisor import MigrationJobStats

QEMU_DOWNTIME_MS = 300
"""What QEMU allows itself at the switch-over when it is not told."""


def to_progress(stats: MigrationJobStats, *, max_downtime_ms: int = 0) -> MigrationProgress:
    """`max_downtime_ms` as asked of QEMU, 0: its default."""
    sample = Sample(
        memory_total=stats.memory_total_bytes,
        memory_remaining=stats.memory_remaining_bytes,
        disk_total=stats.disk_total_bytes,
        disk_remaining=stats.disk_remaining_bytes,
        rate=stats.disk_bytes_per_second if stats.copying_disks else stats.memory_bytes_per_second,
        # What the guest writes while disks are copied is mirrored as it is written.
        dirty_rate=0 if stats.copying_disks else stats.dirty_bytes_per_second,
        max_downtime_seconds=(max_downtime_ms or QEMU_DOWNTIME_MS) / 1000,
    )
    return MigrationProgress(
        phase=to_phase(phase_of(stats)),
        iteration=stats.iteration,
        memory_total_bytes=stats.memory_total_bytes,
        memory_processed_bytes=stats.memory_processed_bytes,
        memory_remaining_bytes=stats.memory_remaining_bytes,
        disk_total_bytes=stats.disk_total_bytes,
        disk_processed_bytes=stats.disk_processed_bytes,
        disk_remaining_bytes=stats.disk_remaining_bytes,
        throughput_bytes_per_second=sample.rate,
        dirty_bytes_per_second=stats.dirty_bytes_per_second,
        does_not_converge=does_not_converge(sample),
        eta_ms=eta_ms(sample),
        expected_downtime_ms=stats.expected_downtime_ms,
        elapsed_ms=stats.elapsed_ms,
    )


def phase_of(stats: MigrationJobStats) -> Phase:
    if stats.post_copy:
        return Phase.POST_COPY
    if stats.switching_over:
        return Phase.SWITCH_OVER
    if stats.copying_disks:
        return Phase.DISKS
    # Before the disks, and between them and the memory, libvirt has nothing to tell.
    return Phase.MEMORY if stats.memory_total_bytes > 0 else Phase.PREPARING


def to_phase(phase: Phase) -> "MigrationProgress.Phase.ValueType":
    return MigrationProgress.Phase.Value(f"PHASE_{phase}")

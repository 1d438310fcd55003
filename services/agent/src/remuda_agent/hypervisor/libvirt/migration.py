"""Peer-to-peer live migration in libvirt's words: flags, parameters, statistics. Pure but for constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import libvirt

from remuda_agent.hypervisor.libvirt.peer import peer_uri
from remuda_agent.hypervisor.model import CompletedMigration, DomainJob, MigrationJobStats, MigrationRequest

_JOBS = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: DomainJob.MIGRATION_OUT,
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: DomainJob.MIGRATION_IN,
}


def destination(request: MigrationRequest) -> str:
    """What the source's libvirtd connects to."""
    return peer_uri(request.target_hostname, request.transport)


def flags(request: MigrationRequest) -> int:
    """Without UNDEFINE_SOURCE: the definition stays until ownership has moved, and with it the statistics."""
    chosen = (
        libvirt.VIR_MIGRATE_LIVE
        | libvirt.VIR_MIGRATE_PEER2PEER
        | libvirt.VIR_MIGRATE_PERSIST_DEST
        | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    )
    # libvirt knows network file systems as shared, not a directory of ours: the caller has proven it.
    chosen |= libvirt.VIR_MIGRATE_UNSAFE if request.shared_disks else libvirt.VIR_MIGRATE_NON_SHARED_INC
    if request.transport == "tls":
        chosen |= libvirt.VIR_MIGRATE_TLS
    if request.auto_converge:
        chosen |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if request.allow_post_copy:
        chosen |= libvirt.VIR_MIGRATE_POSTCOPY
    return int(chosen)


def parameters(
    request: MigrationRequest, *, live_xml: str, persistent_xml: str | None, disks: Sequence[str]
) -> dict[str, Any]:
    """For migrateToURI3. Disks are named, because libvirt's own choice leaves some out."""
    chosen: dict[str, Any] = {libvirt.VIR_MIGRATE_PARAM_DEST_XML: live_xml}
    if persistent_xml is not None:
        chosen[libvirt.VIR_MIGRATE_PARAM_PERSIST_XML] = persistent_xml
    if not request.shared_disks:
        chosen[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(disks)
    if request.bandwidth_mib_s:
        chosen[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = request.bandwidth_mib_s
        if request.allow_post_copy:
            # Else it would take all of a link that is shared with others.
            chosen[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = request.bandwidth_mib_s
    if request.target_address:
        chosen[libvirt.VIR_MIGRATE_PARAM_URI] = f"tcp://{_bracketed(request.target_address)}"
        if request.transport == "tls":
            # The connection goes to an address; the certificate is about a name.
            chosen[libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION] = request.target_hostname
    return chosen


def running_job(stats: Mapping[str, Any]) -> DomainJob:
    """Which job ``jobStats(0)`` tells of."""
    if stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return DomainJob.NONE
    return _JOBS.get(stats.get("operation", 0), DomainJob.OTHER)


def job_stats(stats: Mapping[str, Any], reason: str = "") -> MigrationJobStats:
    """Of a running migration. QEMU counts dirty pages, not bytes. ``reason``: of the paused guest's state."""

    def number(key: str) -> int:
        return int(stats.get(key, 0))

    return MigrationJobStats(
        elapsed_ms=number("time_elapsed"),
        iteration=number("memory_iteration"),
        memory_total_bytes=number("memory_total"),
        memory_processed_bytes=number("memory_processed"),
        memory_remaining_bytes=number("memory_remaining"),
        memory_bytes_per_second=number("memory_bps"),
        dirty_bytes_per_second=number("memory_dirty_rate") * (number("memory_page_size") or 4096),
        disk_total_bytes=number("disk_total"),
        disk_processed_bytes=number("disk_processed"),
        disk_remaining_bytes=number("disk_remaining"),
        disk_bytes_per_second=number("disk_bps"),
        expected_downtime_ms=number("downtime"),
        switching_over=reason == "migration",
        post_copy=reason in ("postcopy", "postcopy_failed"),
    )


def completed(stats: Mapping[str, Any]) -> CompletedMigration | None:
    """Of ``jobStats(COMPLETED)``; None when the last job was no migration, or did not end well."""
    if stats.get("type") != libvirt.VIR_DOMAIN_JOB_COMPLETED or stats.get("operation") not in _JOBS:
        return None
    return CompletedMigration(
        downtime_ms=stats.get("downtime"),
        job_duration_ms=stats.get("time_elapsed"),
        memory_bytes=int(stats.get("memory_processed", 0)),
        disk_bytes=int(stats.get("disk_processed", 0)),
        iterations=int(stats.get("memory_iteration", 0)),
    )


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address

"""Live migration between fake hosts, as functions over the world."""

from __future__ import annotations

import math
from dataclasses import replace

from remuda_core.ids import InstanceId

from remuda_agent.hypervisor.fake import steering
from remuda_agent.hypervisor.fake.world import (
    MIB,
    FakeDomain,
    FakeHost,
    FakeJob,
    FakeTimings,
    JobResult,
    World,
    at_target,
)
from remuda_agent.hypervisor.model import (
    EventKind,
    MigrationJobStats,
    MigrationRequest,
    hypervisor_error,
)

QEMU_DOWNTIME_MS = 300


def begin(
    world: World,
    source: str,
    request: MigrationRequest,
    *,
    now: float,
    timings: FakeTimings,
    fail_after: float = math.inf,
    fail_message: str = "",
) -> int:
    """Start a job and return its number. Raises what libvirt refuses at once."""
    instance_id = request.instance_id
    domain = world.domain(source, instance_id)
    if domain.live is None:
        raise hypervisor_error("Requested operation is not valid: domain is not running")
    if domain.backup or world.job_of(source, instance_id) is not None:
        raise hypervisor_error("Timed out during operation: cannot acquire state change lock")
    domain.checkpoints.clear()
    target = _reachable(world, source, request.target_hostname)
    there = target.domains.get(instance_id)
    if there is not None and there.live is not None:
        raise hypervisor_error(
            f"operation failed: domain '{instance_id}' is already active on {request.target_hostname}"
        )
    if there is None:
        there = target.domains[instance_id] = FakeDomain(definition=None)
    there.live = at_target(domain.live, request)
    there.paused, there.incoming, there.reason = True, True, "migration"
    there.guest_agent, there.started_at = domain.guest_agent, domain.started_at
    world.tell(request.target_hostname, EventKind.STARTED, instance_id, "migrated")
    disk_bytes = 0 if request.shared_disks else timings.disk_bytes
    if request.bandwidth_mib_s:
        rate = request.bandwidth_mib_s * MIB
        timings = replace(timings, migrate_disks=max(timings.migrate_disks, disk_bytes / rate))
    number, world.next_job = world.next_job, world.next_job + 1
    job = world.jobs[number] = FakeJob(
        number=number,
        source=source,
        request=request,
        started=now,
        timings=timings,
        memory_bytes=domain.live.memory_mib * MIB,
        disk_bytes=disk_bytes,
        resume=not domain.paused,
        # A guest that stands still already needs one pass.
        paused_at=now if domain.paused and math.isinf(timings.migrate_memory) else None,
        fail_at=now + fail_after,
        fail_message=fail_message,
    )
    job.memory_since = job.disks_end
    job.memory_rate = steering.rate(job, request.bandwidth_mib_s)
    job.post_copy_rate = steering.rate(job, request.bandwidth_mib_s)
    steering.allow_downtime(job, request.max_downtime_ms or QEMU_DOWNTIME_MS, now=now)
    return number


def abort(world: World, host: str, instance_id: InstanceId) -> None:
    """Cancel before the switch-over; later it has no effect. Raises DomainMissing."""
    world.domain(host, instance_id)
    job = world.job_of(host, instance_id)
    if job is not None and not job.switched:
        world.end_job(job, JobResult(outcome="cancelled", message="canceled by client"))


def stats(world: World, host: str, instance_id: InstanceId, *, now: float) -> MigrationJobStats | None:
    """Work done grows evenly with time; of a guest that does not converge some is left again and again."""
    domain = world.domain(host, instance_id)
    job = world.job_of(host, instance_id)
    if job is None or domain.live is None:
        return None
    disks = _share(now - job.started, job.disks_end - job.started)
    endless = math.isinf(job.timings.migrate_memory)
    elapsed = max(now - job.started, 1e-3)
    disk_done = round(job.disk_bytes * disks)
    sent = job.memory_bytes if math.isinf(job.memory_rate) and disks >= 1 else round(job.sent(now))
    memory_rate = round(sent / elapsed if math.isinf(job.memory_rate) else job.memory_rate)
    return MigrationJobStats(
        elapsed_ms=round(1000 * (now - job.started)),
        iteration=job.iteration(now),
        memory_total_bytes=job.memory_bytes,
        memory_processed_bytes=sent,
        memory_remaining_bytes=round(job.remaining(now)) if sent < job.memory_bytes or endless else 0,
        memory_bytes_per_second=memory_rate if disks >= 1 else 0,
        dirty_bytes_per_second=2 * memory_rate if endless and disks >= 1 else 0,
        disk_total_bytes=job.disk_bytes,
        disk_processed_bytes=disk_done,
        disk_remaining_bytes=job.disk_bytes - disk_done,
        disk_bytes_per_second=round(disk_done / elapsed) if disks < 1 else 0,
        expected_downtime_ms=round(1000 * job.timings.switch_over),
        switching_over=job.switched and job.post_copy_at is None,
        post_copy=job.post_copy_at is not None,
    )


def cut_off(world: World, host: str, *, now: float) -> None:
    """The host's network is gone: jobs that have not switched over notice it after the peer timeout."""
    for job in world.jobs.values():
        if host in (job.source, job.request.target_hostname):
            job.fail_at = min(job.fail_at, now + job.timings.peer_timeout)
            job.fail_message = "client socket is closed"


def power_fail(world: World, host: str) -> None:
    """Every QEMU of the host dies at once; definitions stay, copies without one do not."""
    for instance_id in tuple(world.hosts[host].domains):
        world.power_off(host, instance_id, reason="unknown")
    world.hosts[host].up = False


def _share(done: float, whole: float) -> float:
    return 1.0 if whole <= 0 else min(1.0, max(0.0, done / whole))


def _reachable(world: World, source: str, name: str) -> FakeHost:
    target = world.hosts.get(name)
    if target is None or not target.up or target.cut or world.hosts[source].cut or name == source:
        raise hypervisor_error(f"unable to connect to server at '{name}:16514': No route to host")
    return target

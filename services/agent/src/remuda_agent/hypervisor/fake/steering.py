"""What is changed of a fake migration while it runs, as functions over the world."""

from __future__ import annotations

import math

from remuda_core.ids import InstanceId

from remuda_agent.hypervisor.fake.world import MIB, FakeJob, World
from remuda_agent.hypervisor.model import EventKind, hypervisor_error

NETWORK_MIB_S = 1024
"""What a guest that does not converge is sent with when there is no cap."""


def rate(job: FakeJob, mib_per_second: int) -> float:
    """Bytes of memory per second: what the network gives, and no more than the cap."""
    seconds = job.timings.migrate_memory
    natural = job.memory_bytes / seconds if seconds > 0 else math.inf
    if math.isinf(seconds):
        natural = float(NETWORK_MIB_S * MIB)
    return min(natural, mib_per_second * MIB) if mib_per_second else natural


def set_bandwidth(
    world: World, host: str, instance_id: InstanceId, mib_per_second: int, *, post_copy: bool, now: float
) -> None:
    """Counts for memory from now on, or from its beginning; never for the disks. Raises DomainMissing."""
    job = _job(world, host, instance_id)
    if not job.timings.heeds_bandwidth:
        return
    job.memory_sent, job.memory_since = job.sent(now), max(now, job.disks_end)
    job.memory_rate = rate(job, mib_per_second)
    if post_copy:
        job.post_copy_rate = rate(job, mib_per_second)


def set_max_downtime(
    world: World, host: str, instance_id: InstanceId, milliseconds: int, *, now: float
) -> int:
    """Returns what is in force. Raises DomainMissing."""
    job = _job(world, host, instance_id)
    allow_downtime(job, milliseconds, now=now)
    return job.downtime_ms


def allow_downtime(job: FakeJob, milliseconds: int, *, now: float) -> None:
    job.downtime_ms = milliseconds
    enough = 0 < job.timings.enough_downtime_ms <= milliseconds
    if enough and job.converged_at is None:
        # Hot pages are all that is left then: a first pass is due in any case.
        first = job.memory_since + max(0.0, job.memory_bytes - job.memory_sent) / job.memory_rate
        job.converged_at = max(now, first)
    elif not enough:
        job.converged_at = None


def start_post_copy(world: World, host: str, instance_id: InstanceId, *, now: float) -> None:
    """The guest goes on at the target. Raises DomainMissing, and what libvirt refuses."""
    job = _job(world, host, instance_id)
    if not job.request.allow_post_copy:
        raise hypervisor_error("Requested operation is not valid: post-copy was not enabled at the start")
    if job.post_copy_at is not None:
        return
    if job.switched or not job.sent(now):
        raise hypervisor_error("internal error: Enable postcopy before the start of migration")
    job.post_copy_at, job.switched = now, True
    target = job.request.target_hostname
    here, there = world.hosts[host].domains[instance_id], world.hosts[target].domains[instance_id]
    here.paused, here.reason = True, "postcopy"
    there.paused, there.reason = False, "postcopy"
    world.tell(host, EventKind.SUSPENDED, instance_id, "postcopy")
    world.tell(target, EventKind.RESUMED, instance_id, "postcopy")


def _job(world: World, host: str, instance_id: InstanceId) -> FakeJob:
    world.domain(host, instance_id)
    job = world.job_of(host, instance_id)
    if job is None:
        raise hypervisor_error("Requested operation is not valid: no migration runs")
    return job

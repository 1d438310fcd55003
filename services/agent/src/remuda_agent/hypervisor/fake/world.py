"""What the fake hosts hold: pure state, changed by calls that name the time; no tasks, no I/O.

Everything that takes time (a guest that powers itself off, a migration) is a record with instants, settled
by whoever looks next. So a job outlives the agent that began it, as libvirt's peer-to-peer jobs do, and a
thousand idle hosts cost nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from remuda_core.ids import Epoch, InstanceId, OperationId

from remuda_agent.hypervisor.model import (
    CompletedMigration,
    DomainDescription,
    DomainJob,
    DomainMissing,
    DomainView,
    EventKind,
    MigrationRequest,
    PowerState,
    hypervisor_error,
)

MACHINE_TYPES = ("pc-q35-7.0", "pc-q35-7.1", "pc-q35-7.2")
MIB = 1 << 20
TOLD_KEPT = 128
"""Events kept for processes that look later; one that missed more lists everything again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeTimings:
    """How long things take, in seconds of the fake's clock; the defaults are immediate."""

    boot: float = 0.0
    """Power-button presses before that are lost, as with real guests."""
    shutdown: float = 0.0
    """From the power button to off; ``inf``: the guest ignores it."""
    migrate_disks: float = 0.0
    """Only when disks are copied."""
    disk_bytes: int = 64 * MIB
    """What a migration of local disks copies, whatever the guest; longer than above under a low cap."""
    migrate_memory: float = 0.0
    """``inf``: does not converge, until the guest is paused or the downtime is large enough."""
    enough_downtime_ms: int = 0
    """What does not converge does so once this pause is allowed; 0: no pause is enough."""
    heeds_bandwidth: bool = True
    """False: a changed cap is accepted, and nothing follows."""
    switch_over: float = 0.0
    peer_timeout: float = 6.0
    """How long a migration takes to notice that the other host is cut off."""


@dataclass(slots=True, kw_only=True)
class FakeDomain:
    """``definition`` is the persistent one, ``live`` what runs; at least one is there."""

    definition: DomainDescription | None
    live: DomainDescription | None = None
    paused: bool = False
    reason: str = "unknown"
    started_at: float = 0.0
    off_at: float | None = None
    """The guest will have powered itself off then."""
    incoming: bool = False
    completed: CompletedMigration | None = None
    guest_agent: bool = True
    frozen: bool = False
    """Its file systems, by its agent."""
    backup: bool = False
    """One is being read."""
    checkpoints: list[str] = field(default_factory=list)
    host_devices: list[str] = field(default_factory=list)
    """Passed through to it, as GuestFacts has them."""
    dirty_bytes_per_second: int = 0
    dirty_rate_measured: bool = False


@dataclass(slots=True, kw_only=True)
class FakeHost:
    """``up`` False: no power. ``cut``: no network, local calls work. ``libvirt_listens`` False: its libvirt
    refuses connections from other hosts.
    """

    name: str
    up: bool = True
    cut: bool = False
    libvirt_listens: bool = True
    cpu_missing_features: list[str] = field(default_factory=list)
    """Its CPU lacks them, and every guest uses them."""
    domains: dict[InstanceId, FakeDomain] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class FakeJob:
    """A migration under way."""

    number: int
    source: str
    request: MigrationRequest
    started: float
    timings: FakeTimings
    memory_bytes: int
    disk_bytes: int
    resume: bool
    """The guest ran when it started: it shall run when it ends."""
    paused_at: float | None = None
    converged_at: float | None = None
    """Since then the allowed downtime is enough."""
    downtime_ms: int = 0
    memory_rate: float = math.inf
    """Bytes per second, since `memory_since`; before that `memory_sent` were sent."""
    memory_sent: float = 0.0
    memory_since: float = 0.0
    post_copy_rate: float = math.inf
    post_copy_at: float | None = None
    fail_at: float = math.inf
    fail_message: str = ""
    switched: bool = False

    @property
    def disks_end(self) -> float:
        return self.started + (0.0 if self.request.shared_disks else self.timings.migrate_disks)

    @property
    def switch_at(self) -> float:
        end = math.inf
        if not math.isinf(self.timings.migrate_memory):
            end = self.memory_since + max(0.0, self.memory_bytes - self.memory_sent) / self.memory_rate
        # A guest that stands still dirties nothing: one last pass, and over. So it is with a pause that is
        # long enough.
        for instant in (self.paused_at, self.converged_at):
            end = end if instant is None else min(end, max(instant, self.disks_end))
        return end if self.post_copy_at is None else self.post_copy_at

    @property
    def done_at(self) -> float:
        if self.post_copy_at is not None:
            return self.post_copy_at + self.remaining(self.post_copy_at) / self.post_copy_rate
        return self.switch_at + self.timings.switch_over

    def sent(self, at: float) -> float:
        """Bytes of memory by ``at``; a guest that does not converge is sent more than once."""
        passed = max(0.0, at - max(self.memory_since, self.disks_end))
        sent = self.memory_sent + (passed * self.memory_rate if passed else 0.0)
        return sent if math.isinf(self.timings.migrate_memory) else min(float(self.memory_bytes), sent)

    def iteration(self, at: float) -> int:
        """From 1; 0 before memory. After the first pass only what is hot is sent, again and again."""
        again = self.sent(at) - self.memory_bytes
        if at < self.disks_end:
            return 0
        return 1 if again < 0 else 2 + int(again // self.hot_bytes)

    def remaining(self, at: float) -> float:
        """Of this pass."""
        again = self.sent(at) - self.memory_bytes
        if again < 0 or not math.isinf(self.timings.migrate_memory):
            return max(0.0, -again)
        return self.hot_bytes - again % self.hot_bytes

    @property
    def hot_bytes(self) -> int:
        """A small part of the guest's memory is rewritten all the time."""
        return max(1, self.memory_bytes // 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job ended: done, failed, cancelled or guest_stopped."""

    outcome: str
    message: str = ""
    completed: CompletedMigration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldEvent:
    """To be told to the subscribers of a host."""

    host: str
    kind: EventKind
    instance_id: InstanceId
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldEvent:
    """One that happened, numbered in order: every process tells its own subscribers."""

    number: int
    event: WorldEvent
    time: str
    """ISO 8601, UTC."""


def at_target(description: DomainDescription, request: MigrationRequest) -> DomainDescription:
    """What arrives there: the new epoch, and the target's bridges."""
    return replace(
        description,
        epoch=request.target_epoch,
        operation_id=request.operation_id,
        nics=tuple(
            replace(nic, bridge=request.bridges.get(nic.mac_address.lower(), nic.bridge))
            for nic in description.nics
        ),
    )


@dataclass(slots=True, kw_only=True)
class World:
    """All hosts and all jobs. Every method takes ``now``; call `settle` first."""

    hosts: dict[str, FakeHost] = field(default_factory=dict)
    jobs: dict[int, FakeJob] = field(default_factory=dict)
    results: dict[int, JobResult] = field(default_factory=dict)
    stopping: set[tuple[str, InstanceId]] = field(default_factory=set)
    """Domains whose `off_at` is set: looking at all of them each time would be slow."""
    next_job: int = 1
    events: list[WorldEvent] = field(default_factory=list)
    """Not yet told."""
    told: list[ToldEvent] = field(default_factory=list)
    """The last ones."""
    next_event: int = 1

    def host(self, name: str) -> FakeHost:
        """Raises HYPERVISOR_ERROR when it has no power."""
        host = self.hosts.setdefault(name, FakeHost(name=name))
        if not host.up:
            raise hypervisor_error(f"cannot connect to the hypervisor of {name}: it has no power")
        return host

    def domain(self, host: str, instance_id: InstanceId) -> FakeDomain:
        """Raises DomainMissing."""
        found = self.host(host).domains.get(instance_id)
        if found is None:
            raise DomainMissing(instance_id)
        return found

    def job_of(self, host: str, instance_id: InstanceId) -> FakeJob | None:
        """The job that moves the instance away from ``host``."""
        return next(
            (
                job
                for job in self.jobs.values()
                if job.source == host and job.request.instance_id == instance_id
            ),
            None,
        )

    def view(self, host: str, instance_id: InstanceId) -> DomainView | None:
        domain = self.host(host).domains.get(instance_id)
        if domain is None:
            return None
        copy = domain.live or domain.definition
        assert copy is not None
        if domain.live is not None:
            power = PowerState.PAUSED if domain.paused else PowerState.RUNNING
        else:
            power = PowerState.CRASHED if domain.reason == "crashed" else PowerState.SHUTOFF
        job = DomainJob.MIGRATION_IN if domain.incoming else DomainJob.NONE
        if self.job_of(host, instance_id) is not None:
            job = DomainJob.MIGRATION_OUT
        elif domain.backup:
            job = DomainJob.OTHER
        return DomainView(
            instance_id=instance_id,
            epoch=copy.epoch,
            operation_id=copy.operation_id,
            power_state=power,
            reason=domain.reason,
            job=job,
            persistent=domain.definition is not None,
            machine_type=copy.machine_type,
            definition_epoch=None if domain.definition is None else domain.definition.epoch,
        )

    def next_due(self) -> float:
        """When something ends by itself; ``inf``: nothing does."""
        ends = [
            min(job.fail_at, job.done_at if job.switched else job.switch_at) for job in self.jobs.values()
        ]
        ends += [
            domain.off_at
            for host, instance in self.stopping
            if (domain := self.hosts[host].domains.get(instance)) and domain.off_at is not None
        ]
        return min(ends, default=math.inf)

    def settle(self, now: float) -> bool:
        """Let everything that is due by ``now`` have happened; whether anything had."""
        changed = False
        for host, instance_id in tuple(self.stopping):
            domain = self.hosts[host].domains.get(instance_id)
            if domain is None or domain.off_at is None:
                self.stopping.discard((host, instance_id))
            elif domain.off_at <= now:
                self.tell(host, EventKind.SHUTDOWN, instance_id, "guest")
                self.power_off(host, instance_id, reason="shutdown")
                changed = True
        for job in tuple(self.jobs.values()):
            changed = self._settle_job(job, now) or changed
        return changed

    def _settle_job(self, job: FakeJob, now: float) -> bool:
        if job.fail_at <= now and not job.switched and job.fail_at < job.switch_at:
            self.end_job(job, JobResult(outcome="failed", message=job.fail_message))
            return True
        if job.post_copy_at is not None and job.fail_at <= now and job.fail_at < job.done_at:
            self._split(job)
            return True
        changed = False
        instance_id = job.request.instance_id
        if not job.switched and job.switch_at <= now:
            source = self.hosts[job.source].domains[instance_id]
            source.paused, source.reason, job.switched = True, "migration", True
            self.tell(job.source, EventKind.SUSPENDED, instance_id, "migrated")
            changed = True
        if job.switched and job.done_at <= now:
            self._finish(job)
            changed = True
        return changed

    def _split(self, job: FakeJob) -> None:
        """Post-copy breaks: each host keeps its part of the guest."""
        instance_id = job.request.instance_id
        for host in (job.source, job.request.target_hostname):
            half = self.hosts[host].domains[instance_id]
            half.paused, half.incoming, half.reason = True, False, "postcopy_failed"
        self.end_job(job, JobResult(outcome="failed", message=job.fail_message))

    def _finish(self, job: FakeJob) -> None:
        instance_id, target = job.request.instance_id, job.request.target_hostname
        measured = CompletedMigration(
            downtime_ms=round(1000 * job.timings.switch_over),
            job_duration_ms=round(1000 * (job.done_at - job.started)),
            memory_bytes=job.memory_bytes,
            disk_bytes=job.disk_bytes,
            iterations=max(2, job.iteration(job.switch_at)),
        )
        source = self.hosts[job.source].domains[instance_id]
        arrived = self.hosts[target].domains[instance_id]
        source.completed = arrived.completed = measured
        arrived.incoming, arrived.paused, arrived.reason = False, not job.resume, "migrated"
        if not job.resume:
            arrived.reason = "user"
        if source.definition is not None and arrived.live is not None:
            arrived.definition = at_target(source.definition, job.request)
        self.tell(target, EventKind.RESUMED if job.resume else EventKind.SUSPENDED, instance_id, "migrated")
        self.end_job(job, JobResult(outcome="done", completed=measured))
        self.power_off(job.source, instance_id, reason="migrated")

    def end_job(self, job: FakeJob, result: JobResult) -> None:
        """Close the job; unless it is done, nothing of it is left at the target."""
        del self.jobs[job.number]
        self.results[job.number] = result
        instance_id = job.request.instance_id
        self.tell(job.source, EventKind.JOB_ENDED, instance_id, result.outcome)
        target = self.hosts[job.request.target_hostname].domains
        if result.outcome != "done" and instance_id in target and target[instance_id].incoming:
            self._drop_live(job.request.target_hostname, instance_id, "failed")
        while len(self.results) > 256:
            del self.results[min(self.results)]

    def power_off(self, host: str, instance_id: InstanceId, *, reason: str) -> None:
        """The QEMU is gone; a job that leaves with it ends, and a copy without definition vanishes."""
        domain = self.hosts[host].domains.get(instance_id)
        if domain is None or domain.live is None:
            return
        if job := self.job_of(host, instance_id):
            outcome = "guest_stopped" if reason == "shutdown" else "failed"
            self.end_job(job, JobResult(outcome=outcome, message=f"the guest went off: {reason}"))
        if domain.incoming:
            self._fail_incoming(host, instance_id)
            return
        self._drop_live(host, instance_id, reason)

    def _fail_incoming(self, host: str, instance_id: InstanceId) -> None:
        for job in tuple(self.jobs.values()):
            if job.request.target_hostname == host and job.request.instance_id == instance_id:
                source = self.hosts[job.source].domains.get(instance_id)
                if source is not None and job.switched:
                    source.paused, source.reason = not job.resume, "migration_canceled"
                self.end_job(job, JobResult(outcome="failed", message="the target's QEMU ended"))
                return
        self._drop_live(host, instance_id, "failed")

    def _drop_live(self, host: str, instance_id: InstanceId, reason: str) -> None:
        domains = self.hosts[host].domains
        domain = domains[instance_id]
        domain.live, domain.paused, domain.incoming, domain.off_at = None, False, False, None
        domain.frozen = domain.backup = False
        domain.reason = reason
        self.stopping.discard((host, instance_id))
        kind = EventKind.CRASHED if reason == "crashed" else EventKind.STOPPED
        self.tell(host, kind, instance_id, reason)
        if domain.definition is None:
            del domains[instance_id]

    def tell(self, host: str, kind: EventKind, instance_id: InstanceId, detail: str) -> None:
        """Queue an event for the subscribers of ``host``."""
        self.events.append(WorldEvent(host=host, kind=kind, instance_id=instance_id, detail=detail))

    def number_events(self, time: str) -> None:
        """What has happened since the last time becomes history; ``time`` as in ToldEvent."""
        for event in self.events:
            self.told.append(ToldEvent(number=self.next_event, event=event, time=time))
            self.next_event += 1
        self.events.clear()
        del self.told[:-TOLD_KEPT]

    def stamp(self, host: str, instance_id: InstanceId, epoch: Epoch, operation_id: OperationId) -> None:
        """Rewrite the metadata. Raises DomainMissing."""
        domain = self.domain(host, instance_id)
        if domain.live is not None:
            domain.live = replace(domain.live, epoch=epoch, operation_id=operation_id)
        if domain.definition is not None:
            domain.definition = replace(domain.definition, epoch=epoch, operation_id=operation_id)

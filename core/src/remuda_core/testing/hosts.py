"""Hosts in memory that obey a leader as agents do: for tests of what gives the orders.

Each step looks before it acts, refuses older leaders and epochs, and keeps what it did. A test makes a host
silent (the order is lost, or it is obeyed and the answer is lost) or makes a step fail.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from google.protobuf.timestamp_pb2 import Timestamp
from remuda.agent.v1.agent_pb2 import (
    FoundFile,
    RunStepRequest,
    StepOutput,
    SurveyResponse,
    SweepReceipt,
    SweepTarget,
)
from remuda.agent.v1.common_pb2 import LeaderRef, StepKey
from remuda.agent.v1.migration_pb2 import MigrationEnded, StartMigration
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.migration_pb2 import MigrationMilestone, MigrationProgress
from remuda.compute.v1.operation_pb2 import Progress
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda.scheduler.v1.registry_pb2 import ObservedInstance

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId, InstanceId
from remuda_core.rpc.status import to_status
from remuda_core.testing import leftovers
from remuda_core.testing.steering import Obedience, Steering

RUNNING = Instance.POWER_STATE_RUNNING
PAUSED = Instance.POWER_STATE_PAUSED
SHUTOFF = Instance.POWER_STATE_SHUTOFF
CRASHED = Instance.POWER_STATE_CRASHED
ABSENT = Instance.POWER_STATE_ABSENT


@dataclass(slots=True, kw_only=True)
class FakeDomain:
    epoch: int
    operation: str
    power: Instance.PowerState.ValueType = SHUTOFF
    reason: str = ""
    job: ObservedInstance.Job.ValueType = ObservedInstance.JOB_UNSPECIFIED
    persistent: bool = True


@dataclass(slots=True, kw_only=True)
class FakeDirectory:
    """An instance's files, with what owner.json says."""

    epoch: int
    operation: str
    role: str = "owner"
    shared: bool = False
    pool: str = "local"
    disk: bool = True
    """Its disk is where it belongs."""


class Silence(Enum):
    """How a host that cannot be reached treats an order."""

    LOST = auto()
    """It never arrives."""
    ANSWER_LOST = auto()
    """It is obeyed, and nobody hears of it."""


class Migrating(Enum):
    """What becomes of a migration that is started on a host."""

    SUCCEEDS = auto()
    FAILS = auto()
    UNTIL_CANCELLED = auto()
    """Copies on and on; a cancel ends it with the guest at the source, `pause_and_finish` at the target."""
    GUEST_STOPS = auto()
    ANSWER_LOST = auto()
    """It succeeds while the source's agent is silent."""
    SOURCE_DIES = auto()
    """The target runs the guest; the source is not heard of again."""
    TARGET_SILENT = auto()
    """After the switch-over the target's agent is silent; the guest hangs between the two."""


@dataclass(slots=True, kw_only=True, eq=False)
class FakeHost:
    id: HostId
    domains: dict[InstanceId, FakeDomain] = field(default_factory=dict)
    directories: dict[InstanceId, FakeDirectory] = field(default_factory=dict)
    files: list[FoundFile] = field(default_factory=list)
    """Besides those of instances."""
    leader: int = 0
    silence: Silence | None = None
    silent_for: int = -1
    """Calls that stay unanswered; -1: all, until `silence` is taken away."""
    migrating: Migrating = Migrating.SUCCEEDS
    obedience: Obedience = field(default_factory=Obedience)
    """What it does with commands to migrations."""
    streams_cut: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def empty(self) -> bool:
        return not self.domains and not self.directories

    def fall_silent(self, how: Silence = Silence.LOST, calls: int = -1) -> None:
        self.silence, self.silent_for = how, calls

    def cut_streams(self) -> None:
        """Nobody who follows a job hears more of it; the jobs go on, and can be joined."""
        cut, self.streams_cut = self.streams_cut, asyncio.Event()
        cut.set()

    def come_back(self) -> None:
        self.silence = None


Hook = Callable[[FakeHost, StepKey], Awaitable[None]]


Offered = Callable[[HostId, ImageId, Sequence[bytes]], Awaitable[int]]


async def _no_base(_host: HostId, _image: ImageId, _digests: Sequence[bytes]) -> int:
    return 0


async def _no_hook(_host: FakeHost, _key: StepKey) -> None:
    return


class FakeHosts:
    """Implements the scheduler's port `Agents`."""

    def __init__(self, *ids: HostId) -> None:
        self.hosts = {host: FakeHost(id=host) for host in ids}
        for host, made in self.hosts.items():
            made.obedience.host = f"hosts/{host}"
        self.log: list[tuple[HostId, str, str]] = []
        """(host, step, "do" or "undo") of every order that was obeyed, in order."""
        self.sweeps: list[tuple[HostId, str]] = []
        self.offers: list[tuple[HostId, ImageId, str, tuple[bytes, ...]]] = []
        """Orders of OfferChunks that a host has obeyed: host, image, manifest digest, chunks."""
        self.offered: Offered = _no_base
        """What becomes of such an order: how many chunks are sound again."""
        """(host, who asked) of every sweep that was obeyed."""
        self.jobs_started = 0
        """Migrations that were begun, joins not counted."""
        self.bridges: dict[str, str] = {}
        """What every host says of its bridges when it prepares to receive a guest."""
        self.starts: list[StartMigration] = []
        """Orders to start or join a migration that reached their host."""
        self._jobs: dict[tuple[HostId, str, str], tuple[asyncio.Task[None], asyncio.Event]] = {}
        self.before: Hook = _no_hook
        """Called before an order is obeyed; what it raises is the step's failure."""
        self.after: Hook = _no_hook
        """Called when it has been obeyed, before the answer."""

    # --- the port ---

    async def fence(self, host: HostId, leader: LeaderRef) -> object:
        found = self._reach(host)
        self._obey_leader(found, leader)
        self._answer(found)
        return found

    async def observe(self, host: HostId, instance: InstanceId) -> ObservedInstance:
        found = self._reach(host)
        self._answer(found)
        return self._show(found, instance)

    async def survey(
        self,
        host: HostId,
        leader: LeaderRef,
        *,
        instance: InstanceId | None,
        digests: bool,
        seconds: float,  # noqa: ARG002
    ) -> SurveyResponse:
        found = self._reach(host)
        self._obey_leader(found, leader)
        self._answer(found)
        return leftovers.survey(found, instance, digests=digests)

    async def sweep(
        self, host: HostId, leader: LeaderRef, targets: Sequence[SweepTarget], *, principal: str
    ) -> Sequence[SweepReceipt]:
        found = self._reach(host)
        self._obey_leader(found, leader)
        receipts = [leftovers.sweep(found, target) for target in targets]
        self.sweeps.append((host, principal))
        self._answer(found)
        return receipts

    async def offer_chunks(
        self,
        host: HostId,
        leader: LeaderRef,
        *,
        image: ImageId,
        manifest_digest: str,
        digests: Sequence[bytes],
        grant: SignedGrant,  # noqa: ARG002
    ) -> int:
        found = self._reach(host)
        self._obey_leader(found, leader)
        self._answer(found)
        self.offers.append((host, image, manifest_digest, tuple(digests)))
        return await self.offered(host, image, digests)

    async def run_step(
        self, host: HostId, request: RunStepRequest, *, on_progress: Callable[[Progress], None]
    ) -> StepOutput:
        found, key = self._reach(host), request.key
        self._obey_leader(found, key.leader)
        undo = key.direction == StepKey.DIRECTION_UNDO
        await self.before(found, key)
        on_progress(Progress(percent=50, message=key.step))
        output = self._undo(found, request) if undo else self._do(found, request)
        output.observed.CopyFrom(self._show(found, InstanceId(key.instance_id)))
        self.log.append((host, key.step, "undo" if undo else "do"))
        await self.after(found, key)
        self._answer(found)
        return output

    async def migrate(
        self,
        host: HostId,
        start: StartMigration,
        *,
        on_progress: Callable[[MigrationProgress], None],
        on_milestone: Callable[[MigrationMilestone], None],
        cancel: asyncio.Event,
        steering: Steering,
    ) -> MigrationEnded:
        source, key = self._reach(host), start.key
        self._obey_leader(source, key.leader)
        self.starts.append(start)
        await self.before(source, key)
        on_milestone(MigrationMilestone(type="JOB_STARTED", host=f"hosts/{host}", time=_now()))
        on_progress(MigrationProgress(phase=MigrationProgress.PHASE_MEMORY, memory_total_bytes=100))
        try:
            async with source.obedience.steered(start, steering, on_milestone):
                await self._join(source, start, cancel)
        except RemudaError as error:
            if error.reason is Reason.HOST_UNREACHABLE:
                raise
            ended = MigrationEnded(status=to_status(error))
        else:
            for kind, where in (("SOURCE_PAUSED", host), ("TARGET_RESUMED", start.target.host_id)):
                on_milestone(MigrationMilestone(type=kind, host=f"hosts/{where}", time=_now()))
            ended = MigrationEnded(memory_bytes=1 << 20, iterations=2, downtime_ms=70, job_duration_ms=900)
        self.log.append((host, key.step, "do"))
        await self.after(source, key)
        self._answer(source)
        return ended

    # --- reaching a host ---

    async def answer_probe(self, host: HostId) -> FakeHost:
        """A question of preflight: it changes nothing, and comes to nothing where the host is silent."""
        found = self._reach(host)
        self._answer(found)
        return found

    def _reach(self, host: HostId) -> FakeHost:
        found = self.hosts[host]
        if found.silence is Silence.LOST:
            self._answer(found)
        return found

    def _answer(self, host: FakeHost) -> None:
        if host.silence is None:
            return
        if host.silent_for == 0:
            host.come_back()
            return
        host.silent_for -= 1
        raise RemudaError(Reason.HOST_UNREACHABLE, f"no answer from {host.id}")

    def _obey_leader(self, host: FakeHost, leader: LeaderRef) -> None:
        if leader.epoch < host.leader:
            raise RemudaError(Reason.STALE_LEADER, f"{host.id} obeys {host.leader}, not {leader.epoch}")
        host.leader = leader.epoch

    def _show(self, host: FakeHost, instance: InstanceId) -> ObservedInstance:
        domain = host.domains.get(instance)
        if domain is None:
            return ObservedInstance(instance_id=instance, power_state=ABSENT)
        return leftovers.shown(instance, domain)

    # --- steps ---

    def _do(self, host: FakeHost, request: RunStepRequest) -> StepOutput:
        key, work = request.key, request.WhichOneof("work")
        instance = InstanceId(key.instance_id)
        domain = host.domains.get(instance)
        if domain is not None and key.epoch < domain.epoch:
            raise RemudaError(Reason.STALE_EPOCH, f"{host.id} holds epoch {domain.epoch}")
        match work:
            case "prepare_disks":
                host.directories[instance] = FakeDirectory(
                    epoch=key.epoch, operation=key.operation_id, pool=request.prepare_disks.spec.pool
                )
            case "define_domain":
                made = host.domains.setdefault(
                    instance, FakeDomain(epoch=key.epoch, operation=key.operation_id)
                )
                made.persistent = True
                return StepOutput(machine_type="pc-q35-7.2")
            case "start_domain" | "stop_domain" | "pause_domain":
                return self._change_power(host, instance, request)
            case "remove_instance":
                self._remove(host, instance)
            case "prepare_incoming":
                host.directories[instance] = FakeDirectory(
                    epoch=key.epoch,
                    operation=key.operation_id,
                    role="incoming",
                    pool=request.prepare_incoming.spec.pool,
                    shared=request.prepare_incoming.shared_disks,
                )
                return StepOutput(bridges=self.bridges)
            case "finish_incoming":
                return self._finish(host, instance, paused=request.finish_incoming.paused)
            case "release_source":
                if domain is not None and domain.power in (RUNNING, PAUSED):
                    raise RemudaError(Reason.HYPERVISOR_ERROR, "the copy here is still active")
                self._remove(host, instance)
            case "ensure_base_image":
                pass
            case _:
                raise RemudaError(Reason.UNIMPLEMENTED, f"step {work}")
        return StepOutput()

    def _undo(self, host: FakeHost, request: RunStepRequest) -> StepOutput:
        instance = InstanceId(request.key.instance_id)
        match request.WhichOneof("work"):
            case "prepare_disks":
                host.directories.pop(instance, None)
            case "define_domain":
                host.domains.pop(instance, None)
            case "start_domain":
                if instance in host.domains:
                    self._switch(host, instance, SHUTOFF, "destroyed")
            case "prepare_incoming":
                domain = host.domains.get(instance)
                if domain is not None and domain.power == RUNNING:
                    raise RemudaError(Reason.MIGRATION_FAILED, "the guest has arrived here")
                self._remove(host, instance)
            case _:
                pass
        return StepOutput()

    def _change_power(self, host: FakeHost, instance: InstanceId, request: RunStepRequest) -> StepOutput:
        match request.WhichOneof("work"):
            case "start_domain":
                self._switch(host, instance, RUNNING, "booted")
            case "stop_domain":
                self._switch(host, instance, SHUTOFF, "shutdown")
                return StepOutput(forced=request.stop_domain.force)
            case _:
                domain = host.domains.get(instance)
                # Only a copy of this epoch: another is not the one that was decided about.
                if domain is not None and domain.power == RUNNING and domain.epoch == request.key.epoch:
                    domain.power, domain.reason = PAUSED, "user"
        return StepOutput()

    def _switch(
        self, host: FakeHost, instance: InstanceId, power: Instance.PowerState.ValueType, reason: str
    ) -> None:
        domain = host.domains.get(instance)
        if domain is None:
            raise RemudaError(Reason.HYPERVISOR_ERROR, f"no domain {instance} on {host.id}")
        if domain.power != power:
            domain.power, domain.reason = power, reason

    def _remove(self, host: FakeHost, instance: InstanceId) -> None:
        host.domains.pop(instance, None)
        host.directories.pop(instance, None)

    def _finish(self, host: FakeHost, instance: InstanceId, *, paused: bool) -> StepOutput:
        domain = host.domains.get(instance)
        if domain is None or domain.power not in (RUNNING, PAUSED):
            raise RemudaError(Reason.GUEST_STOPPED, f"{instance} does not run on {host.id}")
        domain.persistent = True
        domain.power = PAUSED if paused else RUNNING
        host.directories[instance].role = "owner"
        return StepOutput(guest_agent_answered=True, downtime_ms=80)

    # --- migrating ---

    async def _join(self, source: FakeHost, start: StartMigration, cancel: asyncio.Event) -> None:
        """The job goes on when its caller is gone."""
        name = (source.id, start.key.operation_id, start.key.step)
        if name not in self._jobs:
            stop = asyncio.Event()
            target = self.hosts[HostId(start.target.host_id)]
            task = asyncio.create_task(self._migrate(source, target, start, stop))
            task.add_done_callback(lambda _: self._jobs.pop(name, None))
            self._jobs[name] = (task, stop)
            self.jobs_started += 1
        job, stop = self._jobs[name]
        asked = asyncio.create_task(cancel.wait())
        cut = asyncio.create_task(source.streams_cut.wait())
        try:
            await asyncio.wait({job, asked, cut}, return_when=asyncio.FIRST_COMPLETED)
            if cut.done():
                raise RemudaError(Reason.HOST_UNREACHABLE, f"the stream from {source.id} broke")
            if asked.done():
                stop.set()
            await asyncio.shield(job)
        finally:
            asked.cancel()
            cut.cancel()

    async def _migrate(
        self, source: FakeHost, target: FakeHost, start: StartMigration, cancel: asyncio.Event
    ) -> None:
        instance = InstanceId(start.key.instance_id)
        domain = source.domains[instance]
        if (domain.power, domain.reason) == (SHUTOFF, "migrated"):
            return
        if instance not in target.directories:
            raise RemudaError(Reason.HYPERVISOR_ERROR, f"{target.id} is not prepared")
        if cancel.is_set():
            raise RemudaError(Reason.CANCELLED, "aborted before it began")
        match source.migrating:
            case Migrating.FAILS:
                raise RemudaError(Reason.HYPERVISOR_ERROR, "the job failed")
            case Migrating.GUEST_STOPS:
                domain.power, domain.reason = SHUTOFF, "shutdown"
                raise RemudaError(Reason.HYPERVISOR_ERROR, "the guest is not running")
            case Migrating.UNTIL_CANCELLED:
                await self._copy_until(cancel, source.obedience.may_finish, domain)
                self._resume(target, instance, start)
                domain.power, domain.reason = SHUTOFF, "migrated"
            case Migrating.TARGET_SILENT:
                domain.power, domain.reason = PAUSED, "migration"
                self._resume(target, instance, start)
                target.fall_silent()
                raise RemudaError(Reason.HYPERVISOR_ERROR, "the connection to the target broke")
            case how:
                self._resume(target, instance, start)
                domain.power, domain.reason = SHUTOFF, "migrated"
                if how is Migrating.ANSWER_LOST:
                    source.fall_silent(Silence.ANSWER_LOST, calls=1)
                if how is Migrating.SOURCE_DIES:
                    source.fall_silent()

    def _resume(self, target: FakeHost, instance: InstanceId, start: StartMigration) -> None:
        target.domains[instance] = FakeDomain(
            epoch=start.target_epoch,
            operation=start.key.operation_id,
            power=RUNNING,
            reason="migrated",
        )

    async def _copy_until(self, cancel: asyncio.Event, may_finish: asyncio.Event, domain: FakeDomain) -> None:
        """Raises CANCELLED."""
        domain.job = ObservedInstance.JOB_MIGRATION_OUT
        waits = [asyncio.create_task(cancel.wait()), asyncio.create_task(may_finish.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            domain.job = ObservedInstance.JOB_UNSPECIFIED
            for wait in waits:
                wait.cancel()
        if cancel.is_set():
            raise RemudaError(Reason.CANCELLED, "the job was aborted")


def _now() -> Timestamp:
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp

"""One live migration away from this host, as a job that outlives its caller and this process.

    start --> the hypervisor migrates --+--> ended: libvirt's word, which decides nothing
      |            ^        |           |
      |            |        +-- cancel, or the deadline: abort the job, or pause the guest
      +-- adopt ---+  (the job is peer to peer: after a restart of the agent it still runs in libvirtd)

What has to survive this process is kept on disk while the job runs (migration_parameters.py): a restarted
agent keeps its deadline, and lets a guest go on that it has paused, although no leader may be there to remind
it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from remuda.agent.v1.agent_pb2 import StepOutput
from remuda.agent.v1.migration_pb2 import MigrationEnded, StartMigration
from remuda.compute.v1.migration_pb2 import MigrationMilestone
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId

from remuda_agent.hypervisor import (
    CompletedMigration,
    EventKind,
    Hypervisor,
    HypervisorEvent,
    MigrationRequest,
)
from remuda_agent.jobs import Job, JobTable
from remuda_agent.migration_parameters import Parameters, timeout_seconds
from remuda_agent.migration_steering import POLL_SECONDS, Steering

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_SLACK_SECONDS = 120.0
"""What is left, after the migration's own deadline, for the abort to take effect."""
_REMEMBERED = 256
"""Migrations whose last word is kept for a leader that asks again."""


class Migrations:
    """Starts, joins and adopts the migrations of this host."""

    def __init__(self, *, hypervisor: Hypervisor, jobs: JobTable, directory: Path, host_id: HostId) -> None:
        self._hypervisor = hypervisor
        self._jobs = jobs
        self._directory = directory
        self._host_id = host_id
        self._ended: dict[str, MigrationEnded] = {}
        self._milestones: dict[str, list[MigrationMilestone]] = {}

    def start_or_join(self, start: StartMigration) -> tuple[Job, bool]:
        async def work(job: Job) -> StepOutput:
            return await self._run(start, job)

        # The step's deadline is the leader's patience with one call; the migration has one of its own.
        return self._jobs.start_or_join(
            start.key,
            work,
            deadline_seconds=timeout_seconds(start.policy) + _SLACK_SECONDS,
            outlives=True,
        )

    def adopt(self) -> None:
        """After a restart: goes on with every migration that was running."""
        for start in Parameters.left_in(self._directory):
            _log.info("adopting a migration", instance=start.key.instance_id)
            self.start_or_join(start)

    def milestones(self, operation: str) -> list[MigrationMilestone]:
        """Everything noteworthy so far, in order; grows while the job runs."""
        return self._milestones.get(operation) or _remember(self._milestones, operation, [])

    def ended(self, operation: str) -> MigrationEnded:
        """What the job that has ended leaves behind."""
        return self._ended[operation]

    async def _run(self, start: StartMigration, job: Job) -> StepOutput:
        operation = start.key.operation_id
        parameters = await asyncio.to_thread(Parameters.keep, self._directory, start)
        try:
            async with self._watching(start):
                self._milestone(start, "JOB_STARTED", parameters.began)
                measured = await self._migrate(start, job, parameters)
        except RemudaError:
            await self._let_go_on(start, parameters)
            parameters.forget()
            raise
        # Not on cancellation: that is this process ending, and its successor adopts the job.
        parameters.forget()
        _remember(self._ended, operation, _ended(measured, parameters.began))
        return StepOutput()

    async def _migrate(self, start: StartMigration, job: Job, parameters: Parameters) -> CompletedMigration:
        """Runs or adopts the hypervisor's job and steers it. Raises what the hypervisor raised."""
        instance = InstanceId(start.key.instance_id)
        view = await self._hypervisor.view(instance)
        if view is not None and not view.active and view.reason == "migrated":
            return await self._hypervisor.completed_stats(instance) or CompletedMigration()
        running = asyncio.create_task(
            self._adopted(instance)
            if view is not None and view.job == "MIGRATION_OUT"
            else self._hypervisor.migrate(_request(start))
        )
        steering = Steering(self._hypervisor, start, job, parameters)
        steered = asyncio.create_task(steering.run(running))
        try:
            # Cancelled with us when the process ends: that does not stop the hypervisor's job.
            return await running
        except RemudaError as error:
            raise steering.meaning(error) from error
        finally:
            steered.cancel()
            await asyncio.gather(steered, return_exceptions=True)

    async def _adopted(self, instance: InstanceId) -> CompletedMigration:
        """Waits for a job that another life of this agent started."""
        while await self._hypervisor.job_stats(instance) is not None:
            await asyncio.sleep(POLL_SECONDS)
        view = await self._hypervisor.view(instance)
        if view is not None and view.reason == "migrated" and not view.active:
            return await self._hypervisor.completed_stats(instance) or CompletedMigration()
        raise RemudaError(Reason.MIGRATION_FAILED, "the migration ended, and the guest has not moved")

    async def _let_go_on(self, start: StartMigration, parameters: Parameters) -> None:
        """A guest that was paused so that its migration could end goes on when it has not ended well."""
        instance = InstanceId(start.key.instance_id)
        if not parameters.paused_by_us:
            return
        try:
            view = await self._hypervisor.view(instance)
            # Paused for another reason it may be past the switch-over: then it is not ours to resume.
            if view is not None and (view.power_state, view.reason, view.job) == ("PAUSED", "user", "NONE"):
                await self._hypervisor.resume(instance)
        except RemudaError as error:
            _log.error("a guest stays paused", instance=instance, error=str(error))

    @contextlib.asynccontextmanager
    async def _watching(self, start: StartMigration) -> AsyncIterator[None]:
        """Notes when the guest was paused here for the switch-over."""

        async def note(events: AsyncIterator[HypervisorEvent]) -> None:
            async for event in events:
                if event.instance_id != start.key.instance_id or event.kind is not EventKind.SUSPENDED:
                    continue
                if event.detail in ("migrated", "migration", "postcopy"):
                    self._milestone(start, "SOURCE_PAUSED", event.time)

        async with self._hypervisor.events() as events:
            noting = asyncio.create_task(note(events))
            try:
                yield
                # The event of the switch-over may come after the hypervisor's call has returned.
                await asyncio.wait({noting}, timeout=0.0)
            finally:
                noting.cancel()
                await asyncio.gather(noting, return_exceptions=True)

    def _milestone(self, start: StartMigration, kind: str, when: datetime) -> None:
        """Once per kind: a repeated call begins again from the first."""
        known = self.milestones(start.key.operation_id)
        if all(one.type != kind for one in known):
            known.append(MigrationMilestone(type=kind, host=f"hosts/{self._host_id}", time=_stamp(when)))


def _remember(known: dict[str, T], operation: str, value: T) -> T:
    known[operation] = value
    while len(known) > _REMEMBERED:
        del known[next(iter(known))]
    return value


def _request(start: StartMigration) -> MigrationRequest:
    return MigrationRequest(
        instance_id=InstanceId(start.key.instance_id),
        operation_id=OperationId(start.key.operation_id),
        target_epoch=Epoch(start.target_epoch),
        target_hostname=start.target.hostname,
        target_address=start.target.address,
        transport=start.target.transport,
        shared_disks=start.shared_disks,
        max_downtime_ms=start.policy.max_downtime_ms,
        bandwidth_mib_s=start.policy.bandwidth_mib_s,
        auto_converge=start.policy.auto_converge,
    )


def _ended(measured: CompletedMigration, began: datetime) -> MigrationEnded:
    return MigrationEnded(
        downtime_ms=measured.downtime_ms,
        job_duration_ms=measured.job_duration_ms,
        memory_bytes=measured.memory_bytes,
        disk_bytes=measured.disk_bytes,
        iterations=measured.iterations,
        start_time=_stamp(began),
        end_time=_stamp(datetime.now(UTC)),
    )


def _stamp(when: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(when)
    return stamp

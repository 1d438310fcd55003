"""One live migration away from this host, as a job that outlives its caller and this process.

    start --> the hypervisor migrates --+--> ended: libvirt's word, which decides nothing
      |            ^        |           |
      |            |        +-- cancel, or the deadline: abort the job, or pause the guest
      +-- adopt ---+  (the job is peer to peer: after a restart of the agent it still runs in libvirtd)

The request is kept on disk while the job runs, so that a restarted agent keeps its deadline although no
leader may be there to remind it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from remuda.agent.v1.agent_pb2 import StepOutput
from remuda.agent.v1.migration_pb2 import MigrationEnded, StartMigration
from remuda.compute.v1.migration_pb2 import MigrationMilestone
from remuda.compute.v1.operation_pb2 import Progress
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId

from remuda_agent.hypervisor import (
    CompletedMigration,
    EventKind,
    Hypervisor,
    MigrationJobStats,
    MigrationRequest,
)
from remuda_agent.jobs import Job, JobTable
from remuda_agent.migration_progress import to_progress

_log = structlog.get_logger(__name__)

POLL_SECONDS = 0.25
DEFAULT_TIMEOUT_SECONDS = 3600.0


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

        return self._jobs.start_or_join(start.key, work)

    def adopt(self) -> None:
        """After a restart: goes on with every migration that was running."""
        for path in sorted(self._directory.glob("*.migration")):
            start = StartMigration.FromString(path.read_bytes())
            _log.info("adopting a migration", instance=start.key.instance_id)
            self.start_or_join(start)

    def milestones(self, operation: str) -> list[MigrationMilestone]:
        """Everything noteworthy so far, in order; grows while the job runs."""
        return self._milestones.setdefault(operation, [])

    def ended(self, operation: str) -> MigrationEnded:
        """What the job that has ended leaves behind."""
        return self._ended[operation]

    async def _run(self, start: StartMigration, job: Job) -> StepOutput:
        path = self._directory / f"{start.key.instance_id}.migration"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(start.SerializeToString())
        began = datetime.now(UTC)
        try:
            async with self._watching(start):
                self._milestone(start, "JOB_STARTED", began)
                measured = await self._migrate(start, job)
            self._ended[start.key.operation_id] = _ended(measured, began)
            return StepOutput()
        finally:
            path.unlink(missing_ok=True)

    async def _migrate(self, start: StartMigration, job: Job) -> CompletedMigration:
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
        steering = asyncio.create_task(self._steer(start, job, running))
        try:
            return await asyncio.shield(running)
        except RemudaError as error:
            if error.reason is Reason.CANCELLED and not job.stop.is_set():
                raise RemudaError(
                    Reason.MIGRATION_TIMEOUT, "the migration did not reach its switch-over in time"
                ) from error
            raise
        finally:
            steering.cancel()
            await asyncio.gather(steering, return_exceptions=True)

    async def _adopted(self, instance: InstanceId) -> CompletedMigration:
        """Waits for a job that another life of this agent started."""
        while await self._hypervisor.job_stats(instance) is not None:
            await asyncio.sleep(POLL_SECONDS)
        view = await self._hypervisor.view(instance)
        if view is not None and view.reason == "migrated" and not view.active:
            return await self._hypervisor.completed_stats(instance) or CompletedMigration()
        raise RemudaError(Reason.MIGRATION_FAILED, "the migration ended, and the guest has not moved")

    async def _steer(
        self, start: StartMigration, job: Job, running: "asyncio.Task[CompletedMigration]"
    ) -> None:
        """Reports progress, and enforces cancel and deadline while the job runs."""
        instance = InstanceId(start.key.instance_id)
        policy = start.policy
        timeout = policy.timeout.ToTimedelta().total_seconds() if policy.HasField("timeout") else 0.0
        deadline = time.monotonic() + (timeout or DEFAULT_TIMEOUT_SECONDS)
        paused = False
        while not running.done():
            stats = await self._stats(instance)
            if stats is not None:
                job.report(Progress(migration=to_progress(stats)))
            late = time.monotonic() >= deadline
            if job.stop.is_set() or (late and not policy.pause_on_timeout):
                # Again and again: an abort that comes before libvirt has started its job finds none.
                await self._hypervisor.abort_job(instance)
            elif late and not paused:
                await self._hypervisor.pause(instance)
                paused = True
            await asyncio.wait({running}, timeout=POLL_SECONDS)

    async def _stats(self, instance: InstanceId) -> MigrationJobStats | None:
        """Statistics are not worth a failure: at the switch-over libvirt may refuse to give them."""
        try:
            return await self._hypervisor.job_stats(instance)
        except RemudaError:
            return None

    @contextlib.asynccontextmanager
    async def _watching(self, start: StartMigration) -> AsyncIterator[None]:
        """Notes when the guest was paused here for the switch-over."""

        async def note() -> None:
            async with self._hypervisor.events() as events:
                async for event in events:
                    if event.instance_id != start.key.instance_id or event.kind is not EventKind.SUSPENDED:
                        continue
                    if event.detail in ("migrated", "migration", "postcopy"):
                        self._milestone(start, "SOURCE_PAUSED", event.time)

        noting = asyncio.create_task(note())
        try:
            yield
        finally:
            noting.cancel()
            await asyncio.gather(noting, return_exceptions=True)

    def _milestone(self, start: StartMigration, kind: str, when: datetime) -> None:
        self.milestones(start.key.operation_id).append(
            MigrationMilestone(type=kind, host=f"hosts/{self._host_id}", time=_stamp(when))
        )


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

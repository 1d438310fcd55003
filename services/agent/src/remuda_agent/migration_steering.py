"""While a migration runs: progress up, and what ends it early. The deadline is this host's own: a cut network
can leave the hypervisor's call hanging, and the leader's word away.
"""

import asyncio
from datetime import UTC, datetime

import structlog
from remuda.agent.v1.migration_pb2 import StartMigration
from remuda.compute.v1.operation_pb2 import Progress
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId

from remuda_agent.hypervisor import CompletedMigration, Hypervisor, MigrationJobStats
from remuda_agent.jobs import Job
from remuda_agent.migration_parameters import Parameters, timeout_seconds
from remuda_agent.migration_progress import to_progress

_log = structlog.get_logger(__name__)

POLL_SECONDS = 0.25


class Steering:
    """Of one run of one migration."""

    def __init__(
        self, hypervisor: Hypervisor, start: StartMigration, job: Job, parameters: Parameters
    ) -> None:
        self._hypervisor = hypervisor
        self._instance = InstanceId(start.key.instance_id)
        self._policy = start.policy
        self._job = job
        self._parameters = parameters
        self._timeout = timeout_seconds(start.policy)
        self._aborted = False

    async def run(self, running: "asyncio.Task[CompletedMigration]") -> None:
        """Reports progress, and enforces cancel and deadline, until `running` is done."""
        while not running.done():
            stats = await self._stats()
            if stats is not None:
                progress = to_progress(stats, max_downtime_ms=self._policy.max_downtime_ms)
                self._job.report(Progress(migration=progress))
            try:
                await self._intervene()
            except RemudaError as error:  # tried again at the next look
                _log.warning("a migration cannot be steered", instance=self._instance, error=str(error))
            await asyncio.wait({running}, timeout=POLL_SECONDS)

    def meaning(self, error: RemudaError) -> RemudaError:
        """Why it really ended: a job that was aborted here ends with the hypervisor's word for that."""
        if self._job.stop.is_set() and self._aborted:
            return RemudaError(Reason.CANCELLED, "the migration was cancelled before its switch-over")
        if self._aborted:
            return RemudaError(
                Reason.MIGRATION_TIMEOUT, "the migration did not reach its switch-over in time"
            )
        return error

    async def _intervene(self) -> None:
        late = (datetime.now(UTC) - self._parameters.began).total_seconds() >= self._timeout
        if self._job.stop.is_set() or (late and not self._policy.pause_on_timeout):
            # Again and again: an abort that comes before libvirt has started its job finds none.
            self._aborted = True
            await self._hypervisor.abort_job(self._instance)
        elif late and not self._parameters.paused_by_us:
            view = await self._hypervisor.view(self._instance)
            if view is not None and view.power_state == "RUNNING":
                await asyncio.to_thread(self._parameters.note_pause)
                await self._hypervisor.pause(self._instance)

    async def _stats(self) -> MigrationJobStats | None:
        """Statistics are not worth a failure: at the switch-over libvirt may refuse to give them."""
        try:
            return await self._hypervisor.job_stats(self._instance)
        except RemudaError:
            return None

"""While a migration runs: progress up, and what ends it early. The deadline is this host's own: a cut network
can leave the hypervisor's call hanging, and the leader's word away.
"""

import asyncio
import time
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
STUCK_SECONDS = 120.0
"""A guest that was paused so that it can be moved, and of which nothing more is sent, stands still for
nothing.
"""


class Steering:
    """Of one run of one migration. `begun`: the hypervisor was told; before that there is no job to abort."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        start: StartMigration,
        job: Job,
        parameters: Parameters,
        begun: asyncio.Event,
    ) -> None:
        self._hypervisor = hypervisor
        self._instance = InstanceId(start.key.instance_id)
        self._policy = start.policy
        self._job = job
        self._parameters = parameters
        self._begun = begun
        self._timeout = timeout_seconds(start.policy)
        self._aborted = False
        self._sent = 0
        self._moved_on = time.monotonic()

    async def run(self, running: "asyncio.Task[CompletedMigration]") -> None:
        """Reports progress, and enforces cancel and deadline, until `running` is done, however long that
        takes: a job that nobody steers could neither be cancelled nor end in time.
        """
        while not running.done():
            for act in (self._report, lambda: self._intervene(running)):
                try:
                    await act()
                except RemudaError as error:  # tried again at the next look
                    _log.warning("a migration cannot be steered", instance=self._instance, error=str(error))
                except Exception:  # a fault of ours must not leave the job to itself
                    _log.exception("steering a migration broke", instance=self._instance)
            await asyncio.wait({running}, timeout=POLL_SECONDS)

    def meaning(self, error: RemudaError) -> RemudaError:
        """Why it really ended: a job that was aborted here ends with the hypervisor's word for that."""
        if not self._aborted or error.reason is Reason.GUEST_STOPPED:
            return error
        if self._job.stop.is_set():
            return RemudaError(Reason.CANCELLED, "the migration was cancelled before its switch-over")
        return RemudaError(Reason.MIGRATION_TIMEOUT, "the migration did not reach its switch-over in time")

    async def _intervene(self, running: "asyncio.Task[CompletedMigration]") -> None:
        late = (datetime.now(UTC) - self._parameters.began).total_seconds() >= self._timeout
        stop = self._job.stop.is_set()
        if not self._begun.is_set():
            if stop or late:
                # It still waits for its turn: what is not begun must not begin any more.
                self._aborted = True
                running.cancel()
        elif stop or (late and not self._policy.pause_on_timeout) or self._stuck():
            # Again and again: an abort that comes before libvirt has started its job finds none.
            self._aborted = True
            await self._hypervisor.abort_job(self._instance)
        elif late and not self._parameters.paused_by_us:
            await self._pause()

    async def _pause(self) -> None:
        """So that it can end: a guest that stands still dirties nothing."""
        view = await self._hypervisor.view(self._instance)
        if view is not None and (view.power_state, view.job) == ("RUNNING", "MIGRATION_OUT"):
            self._moved_on = time.monotonic()
            await asyncio.to_thread(self._parameters.note_pause)
            await self._hypervisor.pause(self._instance)

    async def _report(self) -> None:
        stats = await self._stats() if self._begun.is_set() else None
        if stats is not None:
            self._note(stats)
            progress = to_progress(stats, max_downtime_ms=self._policy.max_downtime_ms)
            self._job.report(Progress(migration=progress))

    def _note(self, stats: MigrationJobStats) -> None:
        sent = stats.memory_processed_bytes + stats.disk_processed_bytes
        if sent > self._sent:
            self._sent, self._moved_on = sent, time.monotonic()

    def _stuck(self) -> bool:
        return time.monotonic() - self._moved_on >= STUCK_SECONDS and self._parameters.paused_by_us

    async def _stats(self) -> MigrationJobStats | None:
        """Statistics are not worth a failure: at the switch-over libvirt may refuse to give them."""
        try:
            return await self._hypervisor.job_stats(self._instance)
        except RemudaError:
            return None

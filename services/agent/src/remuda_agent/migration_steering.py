"""While a migration runs: progress up, commands down, and the ladder, with the deadline at its end. All are
this host's own: a cut network can leave the hypervisor's call hanging, and the leader's word away.
"""

import asyncio

import structlog
from remuda.agent.v1.migration_pb2 import StartMigration
from remuda.compute.v1.operation_pb2 import Progress
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId
from remuda_core.migration.commands import Phase
from remuda_core.migration.ladder import Look, Pace

from remuda_agent.hypervisor import CompletedMigration, Hypervisor, MigrationJobStats
from remuda_agent.jobs import Job
from remuda_agent.migration_acts import Acts, Tell
from remuda_agent.migration_commands import CommandBook
from remuda_agent.migration_ledger import Ledger
from remuda_agent.migration_obeying import Obeying
from remuda_agent.migration_parameters import Parameters
from remuda_agent.migration_progress import phase_of, to_progress

_log = structlog.get_logger(__name__)

POLL_SECONDS = 0.25


class Steering:
    """Of one run of one migration. `begun`: the hypervisor was told; before that there is no job to abort."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        start: StartMigration,
        job: Job,
        *,
        parameters: Parameters,
        ledger: Ledger,
        book: CommandBook,
        begun: asyncio.Event,
        pace: Pace,
        tell: Tell,
    ) -> None:
        self._hypervisor = hypervisor
        self._instance = InstanceId(start.key.instance_id)
        self._job = job
        self._begun = begun
        self._tell = tell
        self._acts = Acts(hypervisor, start, parameters=parameters, ledger=ledger, pace=pace, tell=tell)
        self._obeying = Obeying(
            self._acts, book, ledger, job, post_copy_allowed=start.policy.allow_post_copy, tell=tell
        )
        self._stats: MigrationJobStats | None = None
        """Of this look; None: not to be had."""
        self._last = MigrationJobStats()
        self._phase = Phase.PREPARING
        self._aborted = ""
        """Why it was."""

    async def run(self, running: "asyncio.Task[CompletedMigration]") -> None:
        """Reports progress, and enforces commands, cancel and deadline, until `running` is done, however long
        that takes: a job that nobody steers could neither be cancelled nor end in time.
        """
        told = ""
        while not running.done():
            for act in (self._report, self._obey, lambda: self._intervene(running)):
                try:
                    await act()
                except RemudaError as error:  # tried again at the next look
                    if str(error) != told:
                        told = str(error)
                        _log.warning("a migration cannot be steered", instance=self._instance, error=told)
                except Exception:  # a fault of ours must not leave the job to itself
                    _log.exception("steering a migration broke", instance=self._instance)
            await asyncio.wait({running}, timeout=POLL_SECONDS)

    def post_copy_seen(self) -> None:
        """Harmless to be told twice."""
        self._acts.post_copy_seen()

    def ended(self) -> None:
        """The hypervisor has no job any more."""
        self._obeying.ended()

    def meaning(self, error: RemudaError) -> RemudaError:
        """Why it really ended: a job that was aborted here ends with the hypervisor's word for that."""
        if not self._aborted or error.reason is Reason.GUEST_STOPPED:
            return error
        self._tell("JOB_ABORTED", self._aborted)
        if self._job.stop.is_set():
            return RemudaError(Reason.CANCELLED, "the migration was cancelled before its switch-over")
        return RemudaError(
            Reason.MIGRATION_TIMEOUT, f"the migration did not reach its switch-over in time: {self._aborted}"
        )

    async def _report(self) -> None:
        # None first: what cannot be had now must not be taken for what is.
        self._stats = None
        self._stats = await self._seen() if self._begun.is_set() else None
        if self._stats is None:
            return
        self._last, self._phase = self._stats, phase_of(self._stats)
        if self._phase is Phase.POST_COPY:
            self._acts.post_copy_seen()
        limit = self._acts.allowed.max_downtime_ms
        self._job.report(Progress(migration=to_progress(self._stats, max_downtime_ms=limit)))

    async def _obey(self) -> None:
        await self._obeying.look(self._phase, self._stats)

    async def _intervene(self, running: "asyncio.Task[CompletedMigration]") -> None:
        stop = self._job.stop.is_set()
        if not self._begun.is_set():
            if stop or self._acts.at >= self._acts.allowed.timeout_seconds:
                # It still waits for its turn: what is not begun must not begin any more.
                self._aborted = "it had not begun"
                running.cancel()
            return
        if self._acts.doubtful_pause:
            await self._acts.pause("what was begun before the agent was restarted")
        if self._in_post_copy():
            return
        why = "a cancel" if stop else await self._acts.climb(self._look())
        if why:
            # Again and again: an abort that comes before libvirt has started its job finds none.
            self._aborted = self._aborted or why
            await self._hypervisor.abort_job(self._instance)

    def _in_post_copy(self) -> bool:
        """Or perhaps so: it is never aborted and never hurried, each host has a part of the guest."""
        return self._phase is Phase.POST_COPY or (self._stats is None and self._acts.post_copy_tried)

    def _look(self) -> Look:
        seen = self._last
        return Look(
            at=self._acts.at,
            phase=self._phase,
            iteration=seen.iteration,
            memory_remaining=seen.memory_remaining_bytes,
            disk_remaining=seen.disk_remaining_bytes,
            sent=seen.memory_processed_bytes + seen.disk_processed_bytes,
        )

    async def _seen(self) -> MigrationJobStats | None:
        """Statistics are not worth a failure: at the switch-over libvirt may refuse to give them."""
        try:
            return await self._hypervisor.job_stats(self._instance)
        except RemudaError:
            return None

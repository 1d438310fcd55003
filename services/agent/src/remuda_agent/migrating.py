"""One live migration away from this host, as a job that outlives its caller and this process.

    start --> the hypervisor migrates --+--> ended: libvirt's word, which decides nothing
      |            ^        |           |
      |            |        +-- commands, and the ladder with its deadline (migration_steering.py)
      +-- adopt ---+  (the job is peer to peer: after a restart of the agent it still runs in libvirtd)

Only an order begins a job. After a restart the agent follows one that still runs, and begins none: whether to
try again is the leader's to say, who may have given the guest to another operation since.

What has to survive this process is kept on disk while the job runs (migration_parameters.py): a restarted
agent keeps its deadline, its rung and its answers.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from remuda.agent.v1.agent_pb2 import StepOutput
from remuda.agent.v1.migration_pb2 import MigrateRequest, MigrationEnded, StartMigration
from remuda.compute.v1.migration_pb2 import CommandResult, MigrationMilestone
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, InstanceId
from remuda_core.migration.ladder import Pace

from remuda_agent.hypervisor import (
    CompletedMigration,
    DomainView,
    EventKind,
    Hypervisor,
    HypervisorEvent,
)
from remuda_agent.jobs import Job, JobName, JobTable, Work
from remuda_agent.migration_commands import CommandBook
from remuda_agent.migration_following import follow, given_away, under_way
from remuda_agent.migration_ledger import LARGEST_TIMELINE, Ledger
from remuda_agent.migration_parameters import Parameters, same_migration
from remuda_agent.migration_request import request_of
from remuda_agent.migration_steering import Steering

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_REMEMBERED = 256
"""Migrations whose last word is kept for a leader that asks again."""
STEERED_SECONDS = 10.0
LATE_EVENT_SECONDS = 0.5
"""By which the event of the switch-over may come after the hypervisor's call has returned."""
BOUND_AGAIN_SECONDS = 1.0
"""QEMU opens a connection for each disk and one for memory, one after the other."""
_REPEATED = frozenset({"DOWNTIME_RAISED", "COMMAND_APPLIED"})


class Migrations:
    """Starts, joins and adopts the migrations of this host."""

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        jobs: JobTable,
        directory: Path,
        host_id: HostId,
        pace: Pace = Pace(),  # noqa: B008 - immutable
    ) -> None:
        self._hypervisor = hypervisor
        self._jobs = jobs
        self._directory = directory
        self._host_id = host_id
        self._pace = pace
        self._running: dict[JobName, StartMigration] = {}
        self._ended: dict[str, MigrationEnded] = {}
        self._milestones: dict[str, list[MigrationMilestone]] = {}
        self._books: dict[str, CommandBook] = {}

    def start_or_join(self, start: StartMigration) -> tuple[Job, bool]:
        """Joining raises STEP_FAILED while the same step still migrates the guest to another target."""

        async def work(job: Job) -> StepOutput:
            return await self._run(start, job)

        job, joined = self._enter(start, work)
        known = self._running.get(job.name, start)
        if joined and not same_migration(known, start):
            raise RemudaError(
                Reason.STEP_FAILED, f"the guest is still being migrated to {known.target.hostname}"
            )
        return job, joined

    async def adopt(self) -> None:
        """After a restart, before the first order can come: goes on with every migration that still runs.

        What has ended meanwhile is forgotten. Whoever asks for it sees what became of the guest.
        """
        for start in await asyncio.to_thread(lambda: list(Parameters.left_in(self._directory))):
            instance = InstanceId(start.key.instance_id)
            log = _log.bind(instance=instance, operation=start.key.operation_id)
            try:
                view = await self._hypervisor.view(instance)
            except RemudaError as error:
                log.warning("adopting a migration unseen", error=str(error))
                self._adopt(start)
                continue
            if view is not None and view.epoch == start.key.epoch and (under_way(view) or given_away(view)):
                log.info("adopting a migration")
                self._adopt(start)
                continue
            log.info("a migration has ended while the agent was away")
            await self._leave(start, view, Parameters.left_by(self._directory, start))

    def _adopt(self, start: StartMigration) -> None:
        async def work(job: Job) -> StepOutput:
            return await self._follow(start, job, Parameters.of_running(self._directory, start))

        self._enter(start, work)

    def _enter(self, start: StartMigration, work: Work) -> tuple[Job, bool]:
        job, joined = self._jobs.start_or_join(start.key, work, outlives=True)
        if not joined and job.task is not None:
            self._running[job.name] = start
            self._book(start.key.operation_id).open()
            job.task.add_done_callback(lambda task: self._ran(job.name, start, task))
        return job, joined

    def _ran(self, name: JobName, start: StartMigration, task: "asyncio.Task[StepOutput]") -> None:
        # The next one of that name may have been entered before this is called: the commands are its then.
        if self._running.get(name) is start:
            del self._running[name]
            self._book(start.key.operation_id).close(task)

    def command(self, operation: str, request: MigrateRequest) -> "asyncio.Future[CommandResult]":
        """Takes a command to a migration that was started or joined. Its result comes when it is known; the
        future is cancelled when the agent ends first.
        """
        return self._book(operation).submit(request)

    def _book(self, operation: str) -> CommandBook:
        return self._books.get(operation) or _remember(self._books, operation, CommandBook())

    def milestones(self, operation: str) -> list[MigrationMilestone]:
        """Everything noteworthy so far, in order; grows while the job runs."""
        return self._milestones.get(operation) or _remember(self._milestones, operation, [])

    def ended(self, operation: str) -> MigrationEnded:
        """What the job that has ended leaves behind."""
        return self._ended[operation]

    async def _run(self, start: StartMigration, job: Job) -> StepOutput:
        """An order: joins what runs, tells again what has ended well, or begins."""
        view = await self._hypervisor.view(InstanceId(start.key.instance_id))
        _refuse_other_epoch(start, view)
        if view is not None and (under_way(view) or given_away(view)):
            return await self._follow(start, job, Parameters.of_running(self._directory, start))
        _refuse_doubtful(view, Parameters.left_by(self._directory, start))
        if job.stop.is_set():
            raise RemudaError(Reason.CANCELLED, "the migration was cancelled before it began")
        request, begun = request_of(start, self._pace), asyncio.Event()
        self._milestones.pop(start.key.operation_id, None)  # of a try with another target
        parameters = await asyncio.to_thread(Parameters.keep, self._directory, start)
        return await self._steer(
            start, job, parameters, lambda: self._hypervisor.migrate(request, begun=begun), begun
        )

    async def _follow(self, start: StartMigration, job: Job, parameters: Parameters) -> StepOutput:
        """A job that another life of this agent began, or that has outlived the call which began it."""
        begun = asyncio.Event()
        begun.set()
        return await self._steer(start, job, parameters, None, begun)

    async def _steer(
        self,
        start: StartMigration,
        job: Job,
        parameters: Parameters,
        call: Callable[[], Awaitable[CompletedMigration]] | None,
        begun: asyncio.Event,
    ) -> StepOutput:
        """Until the hypervisor has no job any more. Raises why the guest has not moved."""
        instance = InstanceId(start.key.instance_id)
        ledger = await asyncio.to_thread(Ledger.of, parameters.ledger)
        book = self._book(start.key.operation_id)
        book.restore(ledger.answers.values())
        running = asyncio.create_task(
            follow(self._hypervisor, instance, call, begun, missed=lambda: self._end_missed_call(start))
        )
        steering = Steering(
            self._hypervisor,
            start,
            job,
            parameters=parameters,
            ledger=ledger,
            book=book,
            begun=begun,
            pace=self._pace,
            tell=lambda kind, detail: self._tell(start, ledger, kind, detail),
        )
        steered = asyncio.create_task(steering.run(running))
        bounded = asyncio.create_task(self._bound_silence(start, running))
        try:
            async with self._watching(start, steering):
                self._milestone(start, "JOB_STARTED", parameters.began)
                self._told_before(start, ledger)
                # Cancelled with us when the process ends: that does not stop the hypervisor's job, and its
                # parameters stay for whoever adopts it.
                await asyncio.wait({running})
                # It ends by itself now. An act that is under way, a pause, must not come after what follows.
                await asyncio.wait({steered}, timeout=STEERED_SECONDS)
                steering.ended()
                measured = running.result()
        except asyncio.CancelledError:
            if not running.done() or not running.cancelled() or begun.is_set():
                raise
            meant = steering.meaning(RemudaError(Reason.CANCELLED, "the migration has not begun"))
            parameters.forget()
            raise meant from None
        except RemudaError as error:
            meant = steering.meaning(error)
            await self._ended_badly(start, parameters, error)
            raise meant from error
        finally:
            for task in (running, steered, bounded):
                task.cancel()
            await asyncio.gather(running, steered, bounded, return_exceptions=True)
        parameters.forget()
        _remember(self._ended, start.key.operation_id, _ended(measured, parameters.began))
        return StepOutput()

    async def _end_missed_call(self, start: StartMigration) -> None:
        """Not while others migrate to the same host: theirs would break."""
        peer, log = _peer(start), _log.bind(instance=start.key.instance_id)
        others = [one for one in self._running.values() if one is not start and _peer(one) == peer]
        log.warning("the guest is off, and its migration does not return", others=len(others))
        if others:
            return
        try:
            await self._hypervisor.end_missed_call(peer=peer)
        except RemudaError as error:
            log.warning("a migration hangs", error=str(error))

    async def _bound_silence(
        self, start: StartMigration, running: "asyncio.Task[CompletedMigration]"
    ) -> None:
        """Beside the steering, which the hypervisor may keep waiting just when this is needed."""
        instance, told = InstanceId(start.key.instance_id), ""
        while not running.done():
            try:
                await self._hypervisor.bound_silence(instance, peer=_peer(start))
            except RemudaError as error:
                if str(error) != told:
                    told = str(error)
                    _log.warning("a silent target would go unnoticed", instance=instance, error=told)
            await asyncio.wait({running}, timeout=BOUND_AGAIN_SECONDS)

    async def _ended_badly(self, start: StartMigration, parameters: Parameters, error: RemudaError) -> None:
        try:
            view = await self._hypervisor.view(InstanceId(start.key.instance_id))
        except RemudaError as unseen:
            _log.error("a guest may stay paused", instance=start.key.instance_id, error=str(unseen))
            return
        await self._leave(start, view, parameters, aborted=error.reason is Reason.CANCELLED)

    async def _leave(
        self,
        start: StartMigration,
        view: DomainView | None,
        parameters: Parameters | None,
        *,
        aborted: bool = False,
    ) -> None:
        """Forgets a migration that has ended. A guest that was paused for it goes on only when the hypervisor
        has said that the job was `aborted`: every guest that stands still is in its last phase, so that after
        any other end the target may run it. Whether it does is seen by the leader, who then lets this copy go
        on; until then the parameters stay and keep it from being sent again.
        """
        if parameters is None:
            return
        if view is not None and _paused_by(parameters, view) and view.epoch == start.key.epoch:
            log = _log.bind(instance=start.key.instance_id, operation=start.key.operation_id)
            if not aborted:
                log.warning("a guest that was paused for its migration is left to the leader")
                return
            try:
                await self._hypervisor.resume(InstanceId(start.key.instance_id))
            except RemudaError as error:
                log.error("a guest stays paused", error=str(error))
                return
        parameters.forget()

    @contextlib.asynccontextmanager
    async def _watching(self, start: StartMigration, steering: Steering) -> AsyncIterator[None]:
        """Notes when the guest was paused here for the switch-over, and that it was for post-copy: that may
        be over before anybody looks.
        """

        paused = asyncio.Event()

        async def note(events: AsyncIterator[HypervisorEvent]) -> None:
            async for event in events:
                if event.instance_id != start.key.instance_id or event.kind is not EventKind.SUSPENDED:
                    continue
                if event.detail in ("migrated", "migration", "postcopy"):
                    self._milestone(start, "SOURCE_PAUSED", event.time)
                    paused.set()
                if event.detail == "postcopy":
                    steering.post_copy_seen()

        async with self._hypervisor.events() as events:
            noting = asyncio.create_task(note(events))
            try:
                yield
                # Of a guest that was paused before, none comes.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(paused.wait(), LATE_EVENT_SECONDS)
            finally:
                noting.cancel()
                await asyncio.gather(noting, return_exceptions=True)

    def _milestone(
        self, start: StartMigration, kind: str, when: datetime, detail: str = ""
    ) -> MigrationMilestone | None:
        """Most once per kind: a repeated call begins again from the first. None: it is known."""
        known = self.milestones(start.key.operation_id)
        if kind not in _REPEATED and any(one.type == kind for one in known):
            return None
        made = MigrationMilestone(type=kind, host=f"hosts/{self._host_id}", time=_stamp(when), detail=detail)
        known.append(made)
        return made

    def _tell(self, start: StartMigration, ledger: Ledger, kind: str, detail: str) -> None:
        """A rung or a command: what the agent did is known to nobody else, and kept."""
        if len(ledger.milestones) < LARGEST_TIMELINE:
            made = self._milestone(start, kind, datetime.now(UTC), detail)
            if made is not None:
                ledger.tell(made)

    def _told_before(self, start: StartMigration, ledger: Ledger) -> None:
        known = self.milestones(start.key.operation_id)
        known.extend(one for one in ledger.milestones if one not in known)


def _peer(start: StartMigration) -> str:
    return start.target.address or start.target.hostname


def _remember(known: dict[str, T], operation: str, value: T) -> T:
    known[operation] = value
    while len(known) > _REMEMBERED:
        del known[next(iter(known))]
    return value


def _refuse_other_epoch(start: StartMigration, view: DomainView | None) -> None:
    if view is not None and view.epoch != start.key.epoch:
        raise RemudaError(
            Reason.STALE_EPOCH,
            f"this host has the copy of epoch {view.epoch}; the order is to move that of {start.key.epoch}",
            metadata={"epoch": str(view.epoch)},
        )


def _refuse_doubtful(view: DomainView | None, left: Parameters | None) -> None:
    """A guest that another try has left at its switch-over may run at that target: sending it again could
    make two of it.
    """
    if view is None:
        return
    at_switch_over = view.power_state == "PAUSED" and view.reason == "migration"
    if view.postcopy or at_switch_over or (left is not None and _paused_by(left, view)):
        raise RemudaError(
            Reason.MIGRATION_FAILED,
            f"a migration has left the guest {view.power_state.lower()} ({view.reason}): it may have moved",
        )


def _paused_by(parameters: Parameters, view: DomainView) -> bool:
    seen = (view.power_state, view.reason, view.job)
    return seen == ("PAUSED", "user", "NONE") and parameters.paused_by_us


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

"""The step `guest_moved`: follows the source's job, then judges by what both hosts show.

look at the source, then at the target --> decide_outcome --> MOVED | failed
   ^    ^                                    |      |
   |    +---- WAIT, SPLIT: stand by ---------+      +--> STAYED and not begun yet, JOIN:
   +---- it ended, or the source fell silent <---------- start or join the job, follow it
"""

import asyncio
import time
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from remuda.agent.v1.common_pb2 import DomainSpec
from remuda.agent.v1.migration_pb2 import MigrationEnded, MigrationPolicy, MigrationTarget, StartMigration
from remuda.compute.v1.migration_pb2 import Migration, MigrationProgress
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationMetadata, Progress
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId
from remuda_core.migration.outcome import Outcome, Power, Why
from remuda_core.migration.progress import Sample, percent
from remuda_core.names import host_name
from remuda_core.rpc.status import from_status, to_status

from remuda_scheduler.engine.run import Run, cancelled, superseded
from remuda_scheduler.engine.saga import AlreadyDone
from remuda_scheduler.sagas.abandoning import abandon, abandoned
from remuda_scheduler.sagas.migration_record import add_milestone, put_migration
from remuda_scheduler.sagas.sighting import Judged, look
from remuda_scheduler.sagas.splitting import hold_apart, tell_split

_Run = Run[LiveMigrateState]

_DEFAULT_DOWNTIME_MS = 300
_DEFAULT_TIMEOUT_SECONDS = 3600.0
_SURE = 2
"""Two looks are not one moment: what alarms people has to be seen twice."""


class _Looks:
    """How often in a row the same was seen."""

    def __init__(self) -> None:
        self._last: Outcome | None = None
        self.times = 0

    def count(self, outcome: Outcome) -> None:
        self.times = self.times + 1 if outcome is self._last else 1
        self._last = outcome


async def move_guest(run: _Run, request: LiveMigrateInstanceRequest, spec: DomainSpec) -> None:
    """Returns when the guest is at the target. Raises RemudaError when it is known that it is not:
    GUEST_STOPPED, MIGRATION_FAILED, MIGRATION_TIMEOUT, CANCELLED.
    """
    try:
        await _until_judged(run, request, spec)
    except RemudaError:
        run.services.controls.finish(run.operation_id)
        raise
    # Whoever leads next goes on from another step: only a judgement ends what can be steered.
    run.services.controls.finish(run.operation_id)


async def _until_judged(run: _Run, request: LiveMigrateInstanceRequest, spec: DomainSpec) -> None:
    looks, begun = _Looks(), False
    while True:
        # Before every order, the first one included: who takes over must not start what is over.
        seen = await look(run)
        looks.count(seen.outcome)
        match seen.outcome:
            case Outcome.MOVED:
                await _arrived(run, request, spec, seen)
                return
            case Outcome.STAYED if not run.state.HasField("ended") and not run.state.split:
                if run.cancelled.is_set():
                    raise cancelled()
                if begun:
                    # Its agent was away, now the source is back and runs no job.
                    if seconds_left(run, request) <= 0:
                        raise RemudaError(Reason.MIGRATION_TIMEOUT, "the job could not be begun in time")
                    await asyncio.sleep(run.services.timing.look_again)
                begun = True
                await _going_on(run)
                await _follow(run, _start(run, request, spec), run.cancelled)
            case Outcome.JOIN:
                if run.superseded() and looks.times > _SURE:
                    raise superseded()
                if looks.times > 1:
                    await asyncio.sleep(run.services.timing.look_again)
                # Whatever its agent said of the end, libvirt's job goes on: it wants to be followed, or a
                # cancel would reach nobody.
                run.state.ClearField("ended")
                await _going_on(run)
                await _follow(run, _start(run, request, spec), run.cancelled)
            case Outcome.STAYED | Outcome.GUEST_STOPPED | Outcome.GUEST_LOST:
                await _going_on(run)
                raise _why_not(run, seen.outcome)
            case _:
                if run.superseded():
                    raise superseded()
                await _stand_by(run, seen, looks.times)


async def _arrived(run: _Run, request: LiveMigrateInstanceRequest, spec: DomainSpec, seen: Judged) -> None:
    await _going_on(run)
    given_away = (seen.source.power, seen.source.why) == (Power.SHUTOFF, Why.MIGRATION)
    if given_away and not run.state.HasField("ended"):
        # Its answer was lost. A job that ended so is answered for with its figures, and never begun again.
        await _follow(run, _start(run, request, spec), run.cancelled)
    # What is still shown is the last look at a job that is over.
    over = MigrationProgress(phase=MigrationProgress.PHASE_FINISHING)
    run.publish(Progress(percent=99, message="finishing", migration=over))


async def settle(run: _Run, request: LiveMigrateInstanceRequest, spec: DomainSpec) -> None:
    """The undo: nothing at the target is removed before it is sure that the guest is not there, or before
    the whole instance is to go.

    Needed when the step ended without a judgement (a fault of ours, or superseded). Raises AlreadyDone when
    the guest is at the target: the way out of that is forward.
    """
    if await abandoned(run):
        return
    stop = asyncio.Event()
    stop.set()
    looks, patient_until = _Looks(), time.monotonic() + run.services.timing.patience
    while True:
        seen = await look(run)
        looks.count(seen.outcome)
        match seen.outcome:
            case Outcome.STAYED | Outcome.GUEST_STOPPED | Outcome.GUEST_LOST:
                return
            case Outcome.MOVED:
                raise AlreadyDone("the guest is at the target")
            case Outcome.JOIN:
                await _follow(run, _start(run, request, spec), stop)
                if time.monotonic() > patient_until and await abandon(run):
                    return
                await asyncio.sleep(run.services.timing.look_again)
            case _:
                if await abandon(run):
                    return
                await _stand_by(run, seen, looks.times)


async def _follow(run: _Run, start: StartMigration, cancel: asyncio.Event) -> None:
    """Starts or joins the job and remembers how it ended; nothing when the source fell silent."""
    put_migration(run, Migration.STATE_RUNNING)
    await run.commit()
    shown = 0

    def on_progress(seen: MigrationProgress) -> None:
        nonlocal shown
        shown = percent(_sample(seen, start.spec.memory_mib << 20), shown)
        phase = MigrationProgress.Phase.Name(seen.phase).removeprefix("PHASE_").replace("_", " ").lower()
        run.publish(Progress(percent=shown, message=phase, migration=seen))

    try:
        async with asyncio.timeout(None) as limit:
            impatient = asyncio.create_task(_bound(run, cancel, limit))
            try:
                ended = await run.services.agents.migrate(
                    HostId(run.state.source_host_id),
                    start,
                    on_progress=on_progress,
                    on_milestone=lambda seen: add_milestone(run, seen),
                    cancel=cancel,
                    steering=run.services.controls.desk(run.operation_id),
                )
            finally:
                impatient.cancel()
                await asyncio.gather(impatient, return_exceptions=True)
    except TimeoutError:
        run.log.warning("the job does not end although it was cancelled")
        return
    except RemudaError as error:
        if error.reason is Reason.HOST_UNREACHABLE:
            run.log.warning("the source's agent fell silent", error=str(error))
            return
        ended = MigrationEnded(status=to_status(error))
    run.state.ended.CopyFrom(ended)
    await run.commit()


async def _bound(run: _Run, cancel: asyncio.Event, limit: asyncio.Timeout) -> None:
    """A job that was cancelled is listened to for the engine's patience; the hosts tell more than it then."""
    await cancel.wait()
    limit.reschedule(asyncio.get_running_loop().time() + run.services.timing.patience)


def _sample(seen: MigrationProgress, memory_bytes: int) -> Sample:
    # While disks are copied libvirt says nothing of memory, all of which is still to come.
    begun = seen.memory_total_bytes > 0
    return Sample(
        memory_total=seen.memory_total_bytes if begun else memory_bytes,
        memory_remaining=seen.memory_remaining_bytes if begun else memory_bytes,
        disk_total=seen.disk_total_bytes,
        disk_remaining=seen.disk_remaining_bytes,
    )


def _start(run: _Run, request: LiveMigrateInstanceRequest, spec: DomainSpec) -> StartMigration:
    """The source keeps the deadline from here on: a job that is joined is not asked again."""
    memory, target = run.state, HostId(run.state.target_host_id)
    left = Duration()
    left.FromSeconds(max(1, int(seconds_left(run, request))))
    record, status = run.services.store.host(target), run.services.store.host_status(target)
    if record is None or status is None:
        raise RemudaError(Reason.HOST_NOT_FOUND, f"{host_name(target)} does not exist any more")
    return StartMigration(
        key=run.key(memory.source_epoch),
        target_epoch=memory.target_epoch,
        target=MigrationTarget(
            host_id=target,
            hostname=record.display_name,
            address=status.inventory.migration_address,
            transport=status.inventory.migration_transport,
            bridges=memory.bridges,
        ),
        policy=MigrationPolicy(
            max_downtime_ms=request.max_downtime_ms or _DEFAULT_DOWNTIME_MS,
            bandwidth_mib_s=request.bandwidth_mib_s,
            timeout=left,
            pause_on_timeout=request.on_timeout == LiveMigrateInstanceRequest.ON_TIMEOUT_PAUSE,
            auto_converge=request.auto_converge,
            allow_post_copy=request.allow_post_copy,
        ),
        shared_disks=memory.shared_disks,
        spec=spec,
    )


def seconds_left(run: _Run, request: LiveMigrateInstanceRequest) -> float:
    """Since admission."""
    allowed = (
        request.timeout.ToTimedelta().total_seconds()
        if request.HasField("timeout")
        else _DEFAULT_TIMEOUT_SECONDS
    )
    admitted = run.state.admit_time.ToDatetime(tzinfo=UTC)
    return allowed - (datetime.now(UTC) - admitted).total_seconds()


def _why_not(run: _Run, outcome: Outcome) -> RemudaError:
    source = host_name(HostId(run.state.source_host_id))
    if outcome is Outcome.GUEST_STOPPED:
        return RemudaError(Reason.GUEST_STOPPED, "the guest shut itself down before it was moved")
    if outcome is Outcome.GUEST_LOST:
        return RemudaError(Reason.MIGRATION_FAILED, "QEMU ended during the move", metadata={"host": source})
    if run.cancelled.is_set():
        return cancelled()
    if run.state.split:
        words, cause = "both hosts ran the guest; it goes on at the source", ""
    elif run.state.ended.status.code == code_pb2.OK:
        words, cause = "libvirt called it a success, yet the guest is at the source", ""
    else:
        error = from_status(run.state.ended.status)
        if error.reason is Reason.MIGRATION_TIMEOUT:
            return error
        words, cause = error.message, error.reason.value
    return RemudaError(Reason.MIGRATION_FAILED, words, metadata={"host": source, "cause": cause})


async def _going_on(run: _Run) -> None:
    if run.metadata.state != OperationMetadata.STATE_RUNNING:
        run.metadata.state = OperationMetadata.STATE_RUNNING
        await run.commit()


async def _stand_by(run: _Run, seen: Judged, times: int) -> None:
    """Visible, for as long as it takes: guessing could make two guests of one."""
    state = OperationMetadata.STATE_WAITING_FOR_OPERATOR
    match seen.outcome:
        case Outcome.SPLIT if times >= _SURE:
            # etcd still names the source, so that its copy goes on.
            if seen.target.power is Power.RUNNING or not run.state.split:
                await hold_apart(run, HostId(run.state.target_host_id), run.state.target_epoch)
        case Outcome.SPLIT_MEMORY if times == _SURE:
            await tell_split(run, "Post-copy broke: nothing is destroyed, an operator has to decide.")
        case Outcome.SPLIT | Outcome.SPLIT_MEMORY if times > _SURE:
            pass
        case _:
            state = OperationMetadata.STATE_WAITING_FOR_HOST
    if run.metadata.state != state:
        run.log.warning("standing by", outcome=seen.outcome.name)
        run.metadata.state = state
        await run.commit()
    await asyncio.sleep(run.services.timing.look_again)

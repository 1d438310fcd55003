"""The step `guest_moved`: follows the source's job, then judges by what both hosts show.

start or join the job --> it ended --+
      ^      |                       v
      |      +-- source silent --> look at source, then target --> decide_outcome
      +------- JOIN, not begun ------+        |
                                              +--> MOVED | failed | WAIT: look again
"""

import asyncio
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from remuda.agent.v1.common_pb2 import DomainSpec
from remuda.agent.v1.migration_pb2 import MigrationEnded, MigrationPolicy, MigrationTarget, StartMigration
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.instance_pb2 import Instance, LiveMigrateInstanceRequest
from remuda.compute.v1.migration_pb2 import Migration, MigrationProgress
from remuda.compute.v1.operation_pb2 import Progress
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId
from remuda_core.migration.outcome import (
    ABSENT,
    UNREACHABLE,
    Job,
    Journalled,
    Outcome,
    Power,
    Sight,
    Why,
    decide_outcome,
)
from remuda_core.migration.progress import Sample, percent
from remuda_core.names import host_name
from remuda_core.rpc.status import from_status, to_status

from remuda_scheduler.engine.run import Run, cancelled
from remuda_scheduler.sagas.migration_record import add_milestone, put_migration

_Run = Run[LiveMigrateState]

_DEFAULT_DOWNTIME_MS = 300
_DEFAULT_TIMEOUT_SECONDS = 3600.0
_SURE = 2

_POWER = {
    Instance.POWER_STATE_RUNNING: Power.RUNNING,
    Instance.POWER_STATE_PAUSED: Power.PAUSED,
    Instance.POWER_STATE_SHUTOFF: Power.SHUTOFF,
    Instance.POWER_STATE_CRASHED: Power.CRASHED,
    Instance.POWER_STATE_ABSENT: Power.ABSENT,
}
_WHY = {
    "migration": Why.MIGRATION,
    "migrated": Why.MIGRATION,
    "postcopy": Why.POSTCOPY,
    "postcopy_failed": Why.POSTCOPY_FAILED,
    "postcopy-failed": Why.POSTCOPY_FAILED,
    "shutdown": Why.SHUTDOWN,
    "crashed": Why.CRASHED,
    "failed": Why.CRASHED,
}
_JOB = {
    ObservedInstance.JOB_UNSPECIFIED: Job.NONE,
    ObservedInstance.JOB_MIGRATION_OUT: Job.OUT,
    ObservedInstance.JOB_MIGRATION_IN: Job.IN,
    ObservedInstance.JOB_OTHER: Job.OTHER,
}


async def move_guest(run: _Run, request: LiveMigrateInstanceRequest, spec: DomainSpec) -> None:
    """Returns when the guest is at the target. Raises RemudaError when it is known that it is not:
    GUEST_STOPPED, MIGRATION_FAILED, MIGRATION_TIMEOUT, CANCELLED.
    """
    strange = 0
    while True:
        if not run.state.HasField("ended"):
            # A cancel that came before the job: do not begin it only to stop it.
            if run.cancelled.is_set() and await look(run) is Outcome.STAYED:
                raise cancelled()
            await _follow(run, _start(run, request, spec), run.cancelled)
        outcome = await look(run)
        run.log.info("migration judged", outcome=outcome.name)
        match outcome:
            case Outcome.MOVED:
                await run.going_on()
                # What is still shown is the last look at a job that is over.
                over = MigrationProgress(phase=MigrationProgress.PHASE_FINISHING)
                run.publish(Progress(percent=99, message="finishing", migration=over))
                return
            case Outcome.STAYED if not run.state.HasField("ended"):
                # Its agent was away, now the source is back and runs no job: begin, or begin again.
                await _look_again(run)
            case Outcome.JOIN:
                await _look_again(run)
            case Outcome.STAYED | Outcome.GUEST_STOPPED | Outcome.GUEST_LOST:
                await run.going_on()
                raise _why_not(run, outcome)
            case _:
                strange += 1
                await _wait(run, outcome, strange)


async def settle(run: _Run, request: LiveMigrateInstanceRequest, spec: DomainSpec) -> None:
    """The undo: nothing at the target is removed before it is sure that the guest is not there.

    Needed when the step ended without a judgement (a fault of ours, never a failed migration).
    """
    stop = asyncio.Event()
    stop.set()
    while not run.superseded():
        match await look(run):
            case Outcome.JOIN:
                await _follow(run, _start(run, request, spec), stop)
                await asyncio.sleep(run.services.timing.look_again)
            case Outcome.STAYED | Outcome.GUEST_STOPPED | Outcome.GUEST_LOST:
                return
            case Outcome.MOVED:
                raise RemudaError(Reason.INTERNAL, "the guest is at the target: this cannot be undone")
            case outcome:
                await run.waiting_for(run.state.source_host_id, f"to be undone: {outcome.name}")


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
        ended = await run.services.agents.migrate(
            HostId(run.state.source_host_id),
            start,
            on_progress=on_progress,
            on_milestone=lambda seen: add_milestone(run, seen),
            cancel=cancel,
        )
    except RemudaError as error:
        if error.reason is Reason.HOST_UNREACHABLE:
            run.log.warning("the source's agent fell silent", error=str(error))
            return
        ended = MigrationEnded(status=to_status(error))
    run.state.ended.CopyFrom(ended)
    await run.commit()


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
    """Raises MIGRATION_TIMEOUT when the time since admission is up before the job begins."""
    memory, target = run.state, HostId(run.state.target_host_id)
    allowed = (
        request.timeout.ToTimedelta().total_seconds()
        if request.HasField("timeout")
        else _DEFAULT_TIMEOUT_SECONDS
    )
    # The source keeps the deadline from here on: a job that is joined is not asked again.
    admitted = memory.admit_time.ToDatetime(tzinfo=UTC)
    left = Duration()
    left.FromSeconds(max(1, int(allowed - (datetime.now(UTC) - admitted).total_seconds())))
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
        ),
        policy=MigrationPolicy(
            max_downtime_ms=request.max_downtime_ms or _DEFAULT_DOWNTIME_MS,
            bandwidth_mib_s=request.bandwidth_mib_s,
            timeout=left,
            pause_on_timeout=request.on_timeout == LiveMigrateInstanceRequest.ON_TIMEOUT_PAUSE,
            auto_converge=request.auto_converge,
        ),
        shared_disks=memory.shared_disks,
        spec=spec,
    )


async def look(run: _Run) -> Outcome:
    """At the source first: see decide_outcome."""
    memory = run.state
    source = await _see(run, HostId(memory.source_host_id), memory.source_epoch, operation="")
    target = await _see(run, HostId(memory.target_host_id), memory.target_epoch, operation=run.operation_id)
    succeeded = memory.HasField("ended") and memory.ended.status.code == code_pb2.OK
    return decide_outcome(source, target, Journalled(source_succeeded=succeeded))


async def _see(run: _Run, host: HostId, epoch: int, *, operation: str) -> Sight:
    """`operation`: that must have made the copy; empty: any."""
    if run.services.store.fenced(host):
        # Proven, not supposed: nothing runs there.
        return ABSENT
    try:
        seen = await run.services.agents.observe(host, run.instance_id)
    except RemudaError as error:
        run.log.info("cannot look at a host", host=host, error=str(error))
        return UNREACHABLE
    # UNSPECIFIED, or a state of a newer agent: as good as no answer.
    return Sight(
        power=_POWER.get(seen.power_state, Power.UNREACHABLE),
        why=_WHY.get(seen.reason, Why.OTHER),
        job=_JOB.get(seen.job, Job.OTHER),
        ours=seen.epoch == epoch and operation in ("", seen.operation_id),
    )


def _why_not(run: _Run, outcome: Outcome) -> RemudaError:
    source = host_name(HostId(run.state.source_host_id))
    if outcome is Outcome.GUEST_STOPPED:
        return RemudaError(Reason.GUEST_STOPPED, "the guest shut itself down before it was moved")
    if outcome is Outcome.GUEST_LOST:
        return RemudaError(Reason.MIGRATION_FAILED, "QEMU ended during the move", metadata={"host": source})
    if run.cancelled.is_set():
        return cancelled()
    if run.state.ended.status.code == code_pb2.OK:
        words, cause = "libvirt called it a success, yet the guest is at the source", ""
    else:
        error = from_status(run.state.ended.status)
        if error.reason is Reason.MIGRATION_TIMEOUT:
            return error
        words, cause = error.message, error.reason.value
    return RemudaError(Reason.MIGRATION_FAILED, words, metadata={"host": source, "cause": cause})


async def _look_again(run: _Run) -> None:
    await run.going_on()
    await asyncio.sleep(run.services.timing.look_again)


async def _wait(run: _Run, outcome: Outcome, times: int) -> None:
    """Visible, for as long as it takes: guessing could make two guests of one."""
    # Twice seen: two looks are not one moment.
    if outcome is not Outcome.WAIT and times == _SURE:
        split = "both hosts run the guest" if outcome is Outcome.SPLIT else "post-copy broke"
        message = f"{split}; nothing is destroyed, an operator has to decide."
        event = run.event("MIGRATION_SPLIT", message, severity=InstanceEvent.SEVERITY_ERROR)
        run.log.error("migration split", outcome=outcome.name)
        await run.change_status(lambda _: None, events=[event])
    await run.waiting_for(run.state.target_host_id, outcome.name)

"""LiveMigrateInstance: the guest goes on on another host, without having been stopped.

Parameters: optional source (asserted), optional target, pause and bandwidth limits, timeout and what happens
at it. The target's copy is made with epoch N+1, which the instance gets when the ownership moves.

    run_state_noted      what the guest did before; undo: it does so again at the source
    capacity_reserved    a target, its reservation, the migration record
    target_prepared      directory, disks and network there, as "incoming"
    guest_moved          the source's job, followed to its end; then both hosts are looked at
    ownership_moved      one txn: host, epoch, pool; the reservation becomes the allocation
    source_released      the source's definition and local files are gone, or a debt
    target_finished      persistent definition, role, run state there
    downtime_recorded    what QEMU measured, or nothing

Point of no return: inside QEMU, in `guest_moved`, when the guest resumes at the target. No txn can be put
there, so nobody's word counts: `decide_outcome` judges what both hosts show, however often it takes. Up to
then a cancel is passed to the job and everything is undone; `ownership_moved` is opened on the evidence, and
from it on the saga only goes forward.

When no target was named, up to three are tried; each try has an epoch of its own.
"""

from remuda.agent.v1.agent_pb2 import FinishIncoming, PrepareIncoming, ReleaseSource, StartDomain
from remuda.agent.v1.common_pb2 import DomainSpec
from remuda.compute.v1.instance_pb2 import Instance, LiveMigrateInstanceRequest
from remuda.compute.v1.migration_pb2 import Migration
from remuda.store.v1.instance_pb2 import InstanceRecord, InstanceStatus
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, ImageId, NetworkId
from remuda_core.names import host_name
from remuda_core.rpc.status import from_status, to_status

from remuda_scheduler.engine.attempts import Attempts
from remuda_scheduler.engine.clock import now
from remuda_scheduler.engine.position import times_begun
from remuda_scheduler.engine.run import Run
from remuda_scheduler.engine.saga import Commit, Ending, Saga, Step, Unreachable
from remuda_scheduler.ports import Decision, PlacementRequest
from remuda_scheduler.sagas.guest import answer, domain_spec, observed_state
from remuda_scheduler.sagas.migration_record import (
    measured_downtime,
    milestone,
    new_migration_id,
    put_migration,
    tell_metrics,
    timeline_events,
)
from remuda_scheduler.sagas.moving import move_guest, settle
from remuda_scheduler.sagas.placing import drop_reservation, indebted, reserve, reserved, resolve_host

_Run = Run[LiveMigrateState]

_MOST_TARGETS = 3
_FOREVER_SECONDS = 10 * 365 * 86400.0


def request_of(run: _Run) -> LiveMigrateInstanceRequest:
    request = LiveMigrateInstanceRequest()
    run.record.request.Unpack(request)
    return request


def _source(run: _Run) -> str:
    return run.state.source_host_id


def _target(run: _Run) -> str:
    return run.state.target_host_id


async def begin(run: _Run) -> None:
    """Raises STATE_FORBIDS_ACTION, SOURCE_HOST_MISMATCH."""
    _, status = await run.instance()
    if not status.host_id or status.state not in (Instance.STATE_RUNNING, Instance.STATE_PAUSED):
        state = Instance.State.Name(status.state)
        raise RemudaError(Reason.STATE_FORBIDS_ACTION, f"a guest in {state} cannot be moved live")
    asserted = resolve_host(run, request_of(run).source_host)
    if asserted is not None and asserted != status.host_id:
        raise RemudaError(
            Reason.SOURCE_HOST_MISMATCH,
            f"the instance is on {host_name(HostId(status.host_id))}, not on {host_name(asserted)}",
            metadata={"host": host_name(HostId(status.host_id))},
        )
    memory = run.state
    memory.migration_id = new_migration_id(run)
    memory.source_host_id, memory.source_pool = status.host_id, status.pool
    memory.source_epoch = status.epoch
    memory.desired_run_state = status.state
    memory.admit_time.CopyFrom(run.metadata.create_time)


async def note_run_state(run: _Run) -> None:
    """What is seen now counts, not what the record says: the guest may have been paused since."""
    seen = await run.services.agents.observe(HostId(run.state.source_host_id), run.instance_id)
    match seen.power_state:
        case Instance.POWER_STATE_RUNNING:
            run.state.desired_run_state = Instance.STATE_RUNNING
        case Instance.POWER_STATE_PAUSED:
            run.state.desired_run_state = Instance.STATE_PAUSED
        case other:
            shown = Instance.PowerState.Name(other)
            raise RemudaError(
                Reason.GUEST_STOPPED, f"the guest is not running at the source: {shown} ({seen.reason})"
            )


async def restore_run_state(run: _Run) -> None:
    """After the target's copy is gone or owed: the guest goes on at the source as it did before.

    libvirt resumes it by itself nearly always. A guest that shut itself down stays off.
    """
    ran = run.state.desired_run_state == Instance.STATE_RUNNING
    # Superseded means deleted; and then it may be unknown where the guest is: never resume on a guess.
    if not ran or not times_begun(run.journal, "guest_moved") or run.superseded():
        return
    source = HostId(run.state.source_host_id)
    attempts = Attempts(run.services.timing, run.silent, stubborn=True)
    while True:
        try:
            seen = await run.services.agents.observe(source, run.instance_id)
            off = (Instance.POWER_STATE_SHUTOFF, Instance.POWER_STATE_CRASHED)
            lost = seen.power_state in off and seen.reason != "shutdown"
            if seen.power_state == Instance.POWER_STATE_PAUSED or lost:
                await run.order(source, run.state.source_epoch, start_domain=StartDomain())
            return
        except RemudaError as error:
            if await attempts.again(error, source):
                continue
            # Not a debt: one that is paid days later would start a guest that was stopped since.
            run.log.warning("the guest could not be resumed at the source", error=str(error))
            return


async def reserve_capacity(run: _Run) -> None:
    if reserved(run, run.state.target_host_id):
        return
    record, status = await run.instance()
    source = HostId(run.state.source_host_id)
    tried = {HostId(host): "it was tried in vain" for host in run.state.refused_host_ids}
    # An epoch for every try: what an earlier target may still hold must never pass for this copy.
    epoch = Epoch(run.state.source_epoch + 1 + len(run.state.refused_host_ids))

    def remember(decision: Decision) -> None:
        state = run.state
        state.target_host_id, state.target_pool, state.target_epoch = (
            decision.host_id,
            decision.pool,
            epoch,
        )
        state.shared_disks = _same_storage(run, source, state.source_pool, decision)
        live = Migration.KIND_LIVE_SHARED if state.shared_disks else Migration.KIND_LIVE_BLOCK
        state.kind = live
        state.ClearField("ended")
        del state.timeline[:]
        put_migration(run, Migration.STATE_PREPARING)

    request = PlacementRequest(
        vcpus=record.vcpus,
        memory_mib=record.memory_mib,
        disk_bytes=record.disk_bytes,
        networks=_networks(status),
        host_id=resolve_host(run, request_of(run).target_host),
        excluded={**indebted(run), **tried, source: "it is the source"},
        source_host_id=source,
        source_pool=run.state.source_pool,
        machine_type=status.machine_type,
    )
    try:
        await reserve(run, record, request, epoch, remember)
    except RemudaError as error:
        # Why the targets that fitted refused says more than that there are no others.
        if error.reason is Reason.NO_HOST_FITS and run.state.HasField("refusal"):
            raise from_status(run.state.refusal) from error
        raise


async def release_capacity(run: _Run) -> None:
    drop_reservation(run)
    if run.state.target_host_id and run.state.target_host_id not in run.state.refused_host_ids:
        run.state.refused_host_ids.append(run.state.target_host_id)
        run.state.refusal.CopyFrom(run.journal.failure)
    run.state.target_host_id = ""


async def _spec(run: _Run, record: InstanceRecord, status: InstanceStatus) -> DomainSpec:
    return await domain_spec(
        run,
        record,
        ports=status.ports,
        pool=run.state.target_pool,
        machine_type=status.machine_type,
    )


async def _incoming(run: _Run) -> PrepareIncoming:
    record, status = await run.instance()
    grant = run.services.grants.sign(
        host_id=HostId(run.state.target_host_id),
        operation_id=run.operation_id,
        images=[ImageId(record.image_id)],
    )
    return PrepareIncoming(
        spec=await _spec(run, record, status), shared_disks=run.state.shared_disks, grant=grant
    )


async def prepare_target(run: _Run) -> None:
    await run.order(run.state.target_host_id, run.state.target_epoch, prepare_incoming=await _incoming(run))


async def remove_from_target(run: _Run) -> None:
    await run.order(
        run.state.target_host_id,
        run.state.target_epoch,
        undo=True,
        prepare_incoming=await _incoming(run),
    )


async def run_migration(run: _Run) -> None:
    record, status = await run.instance()
    await move_guest(run, request_of(run), await _spec(run, record, status))


async def stop_migration(run: _Run) -> None:
    record, status = await run.instance()
    await settle(run, request_of(run), await _spec(run, record, status))


async def move_ownership(run: _Run) -> None:
    def change(status: InstanceStatus) -> None:
        status.host_id = run.state.target_host_id
        status.epoch = run.state.target_epoch
        status.pool = run.state.target_pool

    _, status = await run.instance()
    if (status.host_id, status.epoch) == (run.state.target_host_id, run.state.target_epoch):
        return
    # The same txn, or the capacity at the target would be counted twice, or not at all.
    drop_reservation(run)
    put_migration(run, Migration.STATE_FINISHING)
    await run.change_status(change)


async def release_source(run: _Run) -> None:
    work = ReleaseSource(pool=run.state.source_pool, shared_disks=run.state.shared_disks)
    await run.order(run.state.source_host_id, run.state.source_epoch, release_source=work)
    milestone(run, "SOURCE_CLEANED", run.state.source_host_id)


async def finish_target(run: _Run) -> None:
    paused = run.state.desired_run_state == Instance.STATE_PAUSED
    work = FinishIncoming(paused=paused, pool=run.state.target_pool)
    run.state.finished.CopyFrom(
        await run.order(run.state.target_host_id, run.state.target_epoch, finish_incoming=work)
    )
    if run.state.finished.HasField("resume_time"):
        resumed, host = run.state.finished.resume_time, host_name(HostId(run.state.target_host_id))
        add_milestone(run, MigrationMilestone(type="TARGET_RESUMED", host=host, time=resumed))
    milestone(run, "TARGET_DEFINED", run.state.target_host_id)


async def record_downtime(run: _Run) -> None:
    put_migration(run, Migration.STATE_DONE, end_time=now())


async def succeed(run: _Run) -> Ending:
    def change(status: InstanceStatus) -> None:
        state, message = _state_afterwards(run)
        status.state = state
        status.status_message = message
        if run.state.finished.HasField("observed"):
            status.observed.CopyFrom(observed_state(run.state.target_host_id, run.state.finished.observed))

    _, status = await run.instance()
    change(status)
    tell_metrics(run, "done", measured_downtime(run.state))
    return Ending(change=change, response=await answer(run, status), events=timeline_events(run))


async def fail(run: _Run, error: RemudaError) -> Ending:
    """The guest is at the source, as it was; unless it stopped by itself."""

    def change(status: InstanceStatus) -> None:
        if error.reason is Reason.GUEST_STOPPED:
            status.state = Instance.STATE_STOPPED
            status.status_message = "The guest shut itself down while it was to be moved."

    if run.state.migration_id:
        stopped = error.reason is Reason.CANCELLED
        end = Migration.STATE_CANCELLED if stopped else Migration.STATE_FAILED
        status = to_status(error, request_id=run.metadata.request_id)
        put_migration(run, end, end_time=now(), error=status)
        tell_metrics(run, "cancelled" if stopped else "failed", None)
    return Ending(change=change, events=timeline_events(run))


def retry_from(run: _Run, error: RemudaError) -> str:
    """Another target, when none was named and it may be the target's fault."""
    worth_it = error.reason not in (Reason.NO_HOST_FITS, Reason.GUEST_STOPPED, Reason.MIGRATION_TIMEOUT)
    tries = len(run.state.refused_host_ids) + 1
    if request_of(run).target_host or not run.state.target_host_id or not worth_it:
        return ""
    return "capacity_reserved" if tries < _MOST_TARGETS else ""


def _state_afterwards(run: _Run) -> tuple[Instance.State.ValueType, str]:
    """The run state that was enforced, unless the guest ended right after the switch-over."""
    match run.state.finished.observed.power_state:
        case Instance.POWER_STATE_SHUTOFF:
            return Instance.STATE_STOPPED, "The guest shut itself down right after its move."
        case Instance.POWER_STATE_CRASHED:
            return Instance.STATE_FAILED, "QEMU ended right after the move."
        case _:
            return run.state.desired_run_state, ""


def _networks(status: InstanceStatus) -> list[NetworkId]:
    return [NetworkId(port.network) for port in status.ports]


def _same_storage(run: _Run, source: HostId, source_pool: str, decision: Decision) -> bool:
    """Both hosts mount the pool, and it is the same one by its uid."""

    def uid(host: HostId, name: str) -> str:
        status = run.services.store.host_status(host)
        pools = status.inventory.pools if status is not None else ()
        return next((pool.uid for pool in pools if pool.name == name and pool.shared), "")

    found = uid(source, source_pool)
    return found != "" and found == uid(decision.host_id, decision.pool)


SAGA = Saga(
    action="LiveMigrateInstance",
    state=LiveMigrateState,
    begin=begin,
    steps=(
        Step(name="run_state_noted", do=note_run_state, undo=restore_run_state, host=_source),
        Step(name="capacity_reserved", do=reserve_capacity, undo=release_capacity),
        # A slow network and a large image, as in a launch.
        Step(
            name="target_prepared",
            do=prepare_target,
            undo=remove_from_target,
            host=_target,
            deadline_seconds=3600.0,
        ),
        # Its deadline is the request's timeout, which the source keeps; waiting for a host has none.
        Step(
            name="guest_moved",
            do=run_migration,
            undo=stop_migration,
            host=_source,
            deadline_seconds=_FOREVER_SECONDS,
            handles_cancel=True,
        ),
        Step(name="ownership_moved", do=move_ownership, commits=Commit.BY_EVIDENCE),
        Step(
            name="source_released",
            do=release_source,
            host=_source,
            unreachable=Unreachable.OWE,
        ),
        Step(name="target_finished", do=finish_target, host=_target, unreachable=Unreachable.OWE),
        Step(name="downtime_recorded", do=record_downtime),
    ),
    succeed=succeed,
    fail=fail,
    retry_from=retry_from,
)

"""LiveMigrateInstance: the guest goes on on another host, without having been stopped.

Parameters: optional source (asserted), optional target, pause and bandwidth limits, timeout and what happens
at it. The target's copy is made with epoch N+1, which the instance gets when the ownership moves.

    preflight_passed     every condition of the move holds for a target: probed on both hosts
    run_state_noted      what the guest did before; undo: it does so again at the source
    capacity_reserved    its turn among all moves, preflight once more if that took long, its reservation, the
                         migration record
    target_prepared      directory, disks and network there, as "incoming"
    guest_moved          the source's job, followed to its end; then both hosts are looked at
    ownership_moved      one txn: host, epoch, pool; the reservation becomes the allocation
    source_released      the source's definition and local files are gone, or a debt
    target_finished      persistent definition, role, run state there
    downtime_recorded    what QEMU measured, or nothing

Point of no return: inside QEMU, in `guest_moved`, when the guest resumes at the target. No txn can be put
there, so nobody's word counts: `decide_outcome` judges what both hosts show, however often it takes. Up to
then a cancel is passed to the job and everything is undone; `ownership_moved` is opened on the evidence, and
from it on the saga only goes forward. An undo that finds the guest at the target turns forward, too. Only a
DeleteInstance behind it ends a move whose guest nobody can find (abandoning.py).

Two copies that run are never undone, and never destroyed: the one that is not on record is paused, and an
operator decides (splitting.py).

When no target was named, up to three that passed preflight are tried; each try is checked anew and has an
epoch of its own.
"""

from remuda.agent.v1.agent_pb2 import (
    FinishIncoming,
    PrepareIncoming,
    ReleaseSource,
    RemoveInstance,
    RunStepRequest,
    StepOutput,
)
from remuda.agent.v1.common_pb2 import DomainSpec
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.migration_pb2 import Migration, MigrationMilestone
from remuda.store.v1.instance_pb2 import InstanceRecord, InstanceStatus
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId
from remuda_core.migration.preflight import without_hosts
from remuda_core.names import host_name
from remuda_core.rpc.status import to_status

from remuda_scheduler.engine.clock import now
from remuda_scheduler.engine.run import Run
from remuda_scheduler.engine.saga import Commit, Ending, Saga, Step, Unreachable
from remuda_scheduler.sagas.abandoning import abandoned
from remuda_scheduler.sagas.guest import answer, domain_spec, observed_state
from remuda_scheduler.sagas.migration_record import (
    add_milestone,
    measured_downtime,
    milestone,
    new_migration_id,
    put_migration,
    request_of,
    tell_metrics,
    timeline_events,
)
from remuda_scheduler.sagas.moving import move_guest, settle
from remuda_scheduler.sagas.placing import drop_reservation, resolve_host
from remuda_scheduler.sagas.preflighting import pass_preflight
from remuda_scheduler.sagas.run_state import note_run_state, restore_run_state
from remuda_scheduler.sagas.sighting import paused_idle, running_idle
from remuda_scheduler.sagas.splitting import hold_apart
from remuda_scheduler.sagas.targeting import (
    give_up_target,
    release_capacity,
    reserve_capacity,
    retry_from,
)

_Run = Run[LiveMigrateState]

_FOREVER_SECONDS = 10 * 365 * 86400.0


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
    output = await run.order(
        run.state.target_host_id, run.state.target_epoch, prepare_incoming=await _incoming(run)
    )
    # The source plugs the target's copy into them: its own may be called otherwise.
    run.state.bridges.clear()
    run.state.bridges.update(output.bridges)


async def remove_from_target(run: _Run) -> None:
    if await abandoned(run):
        # Nobody may know which copy lives: this one goes, alive or not. The undo proper would rightly refuse
        # to remove a guest that has arrived.
        work = RemoveInstance(pool=run.state.target_pool, keep_shared_files=run.state.shared_disks)
        await run.order(
            run.state.target_host_id, run.state.target_epoch, step="target_removed", remove_instance=work
        )
        return
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
    """Raises HYPERVISOR_ERROR for a copy that lives, which becomes the debt that it is not gone."""
    host, epoch = HostId(run.state.source_host_id), run.state.source_epoch
    pool, shared = run.state.source_pool, run.state.shared_disks
    work = ReleaseSource(pool=pool, shared_disks=shared)
    if run.state.split:
        # Owed from the first moment on, without being ordered: a host takes a paused copy for a left-over.
        run.last_order = (host, RunStepRequest(key=run.key(epoch), release_source=work))
        await _refuse_a_second_copy(run, host)
    try:
        await run.order(host, epoch, release_source=work)
    except RemudaError as error:
        if error.reason is not Reason.HYPERVISOR_ERROR:
            raise
        # Its guest runs at the target: that was seen before the ownership moved.
        seen = await run.services.agents.observe(host, run.instance_id)
        if running_idle(seen):
            # libvirt resumed it when it did not hear the target's last word.
            await hold_apart(run, host, epoch)
        if not paused_idle(seen):
            raise
        # A connection cut at the switch-over leaves the source paused for ever.
        removal = RemoveInstance(pool=pool, keep_shared_files=shared)
        await run.order(host, epoch, step="source_removed", remove_instance=removal)
    milestone(run, "SOURCE_CLEANED", run.state.source_host_id)


async def _refuse_a_second_copy(run: _Run, host: HostId) -> None:
    seen = await run.services.agents.observe(host, run.instance_id)
    if running_idle(seen):
        await hold_apart(run, host, run.state.source_epoch)
    elif not paused_idle(seen):
        return
    raise RemudaError(
        Reason.HYPERVISOR_ERROR,
        "the copy at the source ran beside the target's: an operator has to decide about it",
        metadata={"host": host_name(host)},
    )


async def finish_target(run: _Run) -> None:
    paused = run.state.desired_run_state == Instance.STATE_PAUSED
    work = FinishIncoming(paused=paused, pool=run.state.target_pool)
    host = HostId(run.state.target_host_id)
    try:
        output = await run.order(host, run.state.target_epoch, finish_incoming=work)
    except RemudaError as error:
        if error.reason is not Reason.GUEST_STOPPED:
            raise
        # It ended after its move: that is the guest's own affair, and what it shows is what it is.
        seen = await run.services.agents.observe(host, run.instance_id)
        run.state.finished.CopyFrom(StepOutput(observed=seen))
        return
    run.state.finished.CopyFrom(output)
    if run.state.finished.HasField("resume_time"):
        resumed = MigrationMilestone(
            type="TARGET_RESUMED", host=host_name(host), time=run.state.finished.resume_time
        )
        add_milestone(run, resumed)
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
    """The guest is at the source, as it was; unless it stopped by itself, or is to be deleted."""

    def change(status: InstanceStatus) -> None:
        if error.reason is Reason.GUEST_STOPPED and status.state != Instance.STATE_DELETING:
            status.state = Instance.STATE_STOPPED
            status.status_message = "The guest shut itself down while it was to be moved."

    if run.state.migration_id:
        stopped = error.reason is Reason.CANCELLED
        end = Migration.STATE_CANCELLED if stopped else Migration.STATE_FAILED
        # Owners read the record; what was seen of hosts stays with the operation.
        status = to_status(without_hosts(error), request_id=run.metadata.request_id)
        put_migration(run, end, end_time=now(), error=status)
        tell_metrics(run, "cancelled" if stopped else "failed", None, reason=error.reason.value)
    return Ending(change=change, events=timeline_events(run))


def _state_afterwards(run: _Run) -> tuple[Instance.State.ValueType, str]:
    """The run state that was enforced, unless the guest ended right after the switch-over."""
    seen = run.state.finished.observed
    match seen.power_state:
        case Instance.POWER_STATE_SHUTOFF if seen.reason == "shutdown":
            return Instance.STATE_STOPPED, "The guest shut itself down right after its move."
        case Instance.POWER_STATE_SHUTOFF | Instance.POWER_STATE_CRASHED | Instance.POWER_STATE_ABSENT:
            return Instance.STATE_FAILED, "QEMU ended right after the move."
        case _:
            return run.state.desired_run_state, ""


SAGA = Saga(
    action="LiveMigrateInstance",
    state=LiveMigrateState,
    begin=begin,
    steps=(
        # Before anything is touched. Its probes are bounded themselves; hosts that a new leader has not heard
        # of are waited for.
        Step(name="preflight_passed", do=pass_preflight, undo=give_up_target, deadline_seconds=120.0),
        Step(name="run_state_noted", do=note_run_state, undo=restore_run_state, host=_source),
        # It waits for its turn as long as the request allows, and looks itself at that and for a cancel.
        Step(
            name="capacity_reserved",
            do=reserve_capacity,
            undo=release_capacity,
            deadline_seconds=_FOREVER_SECONDS,
        ),
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
            # libvirt may still be ending its side when the target's word has decided already.
            attempts=8,
            unreachable=Unreachable.OWE,
        ),
        Step(name="target_finished", do=finish_target, host=_target, unreachable=Unreachable.OWE),
        Step(name="downtime_recorded", do=record_downtime),
    ),
    succeed=succeed,
    fail=fail,
    retry_from=retry_from,
)

"""Which host a guest is moved to: the decision, its reservation, and the next one when it was in vain."""

from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.operation_pb2 import PlacementExplanation
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, NetworkId

from remuda_scheduler.engine.run import Run
from remuda_scheduler.ports import Decision, PlacementRequest
from remuda_scheduler.sagas.migration_record import put_migration, request_of
from remuda_scheduler.sagas.placing import drop_reservation, indebted, reserve, reserved, resolve_host
from remuda_scheduler.sagas.preflighting import still_passes
from remuda_scheduler.sagas.turn import its_turn, wait_for_turn

_Run = Run[LiveMigrateState]

_MOST_TARGETS = 3


async def reserve_capacity(run: _Run) -> None:
    """On the host that passed preflight, and on no other, when it is its turn. Raises NO_HOST_FITS when the
    host was filled up or cordoned meanwhile, PREFLIGHT_FAILED when it has changed otherwise,
    MIGRATION_TIMEOUT when its time was up before its turn.
    """
    if reserved(run, run.state.target_host_id):
        return
    record, status = await run.instance()
    chosen, source = HostId(run.state.target_host_id), HostId(run.state.source_host_id)
    explained = PlacementExplanation()
    explained.CopyFrom(run.metadata.placement)
    # An epoch for every try: what an earlier target may still hold must never pass for this copy.
    epoch = Epoch(run.state.source_epoch + 1 + len(run.state.refused_host_ids))

    def remember(decision: Decision) -> None:
        state = run.state
        state.target_pool, state.target_epoch = decision.pool, epoch
        state.ClearField("ended")
        state.ClearField("split")
        state.bridges.clear()
        del state.timeline[:]
        # It tells of all hosts; this decision was about one.
        run.metadata.placement.CopyFrom(explained)
        put_migration(run, Migration.STATE_PREPARING)

    request = PlacementRequest(
        vcpus=record.vcpus,
        memory_mib=record.memory_mib,
        disk_bytes=record.disk_bytes,
        networks=_networks(status),
        host_id=resolve_host(run, request_of(run).target_host),
        among=frozenset({chosen}),
        excluded={**indebted(run), source: "it is the source"},
        source_host_id=source,
        source_pool=run.state.source_pool,
        machine_type=status.machine_type,
    )
    while True:
        await wait_for_turn(run, request_of(run))
        # Its turn may have been long in coming. Nobody overtakes it meanwhile: it is still the next.
        await still_passes(run)
        if await reserve(run, record, request, epoch, remember, may=lambda: its_turn(run)):
            return


async def release_capacity(run: _Run) -> None:
    drop_reservation(run)


async def give_up_target(run: _Run) -> None:
    """Nothing is left there; it is noted why it was in vain, so that it is not tried again."""
    state = run.state
    if state.target_host_id and state.target_host_id not in state.refused_host_ids:
        state.refused_host_ids.append(state.target_host_id)
        state.refusal.CopyFrom(run.journal.failure)
        state.refusals[state.target_host_id] = run.journal.failure.message
    state.target_host_id = ""


def retry_from(run: _Run, error: RemudaError) -> str:
    """Another target, when none was named and it may be the target's fault."""
    worth_it = error.reason not in (Reason.GUEST_STOPPED, Reason.MIGRATION_TIMEOUT)
    tries = len(run.state.refused_host_ids) + 1
    if request_of(run).target_host or not run.state.target_host_id or not worth_it:
        return ""
    return "preflight_passed" if tries < _MOST_TARGETS else ""


def _networks(status: InstanceStatus) -> list[NetworkId]:
    return [NetworkId(port.network) for port in status.ports]

"""Which host a guest is moved to: the decision, its reservation, and the next one when it was in vain."""

from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, NetworkId
from remuda_core.rpc.status import from_status

from remuda_scheduler.engine.run import Run
from remuda_scheduler.ports import Decision, PlacementRequest
from remuda_scheduler.sagas.migration_record import put_migration
from remuda_scheduler.sagas.placing import drop_reservation, indebted, reserve, reserved, resolve_host

_Run = Run[LiveMigrateState]

_MOST_TARGETS = 3


def request_of(run: _Run) -> LiveMigrateInstanceRequest:
    request = LiveMigrateInstanceRequest()
    run.record.request.Unpack(request)
    return request


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
        state.ClearField("split")
        state.bridges.clear()
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


def retry_from(run: _Run, error: RemudaError) -> str:
    """Another target, when none was named and it may be the target's fault."""
    worth_it = error.reason not in (Reason.NO_HOST_FITS, Reason.GUEST_STOPPED, Reason.MIGRATION_TIMEOUT)
    tries = len(run.state.refused_host_ids) + 1
    if request_of(run).target_host or not run.state.target_host_id or not worth_it:
        return ""
    return "capacity_reserved" if tries < _MOST_TARGETS else ""


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

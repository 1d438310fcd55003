"""What clients ask of preflight, in its own words."""

from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.moving_pb2 import CheckMigrationRequest, CheckMigrationResponse
from remuda.store.v1.instance_pb2 import InstanceRecord, InstanceStatus
from remuda_core.errors import Reason, RemudaError, not_found
from remuda_core.ids import HostId, InstanceId, NetworkId
from remuda_core.names import host_name

from remuda_scheduler.ports import PlacementRequest
from remuda_scheduler.preflight.service import Preflight, Wanted
from remuda_scheduler.store import StoreView

PATIENCE_SECONDS = 5.0
"""For hosts that a new leader does not know yet; the caller waits meanwhile."""


async def check_migration(
    store: StoreView, preflight: Preflight, instance: InstanceId, request: CheckMigrationRequest
) -> CheckMigrationResponse:
    """Raises INSTANCE_NOT_FOUND, HOST_NOT_FOUND, STATE_FORBIDS_ACTION for a guest that is not up."""
    record, status = _read(store, instance)
    if not status.host_id or status.state not in (Instance.STATE_RUNNING, Instance.STATE_PAUSED):
        state = Instance.State.Name(status.state)
        raise RemudaError(Reason.STATE_FORBIDS_ACTION, f"a guest in {state} cannot be moved live")
    target = _host(store, request.target_host)
    owing = {
        HostId(entry.value.host_id): "it still owes clean-up for this instance"
        for entry in store.debts.items()
        if entry.value.instance_id == instance
    }
    wanted = Wanted(
        instance=instance,
        placement=move_of(record, status, target=target, excluded=owing),
        image_id=record.image_id,
        manifest_digest=record.manifest_digest,
        allow_version_skew=request.allow_version_skew,
        max_downtime_ms=request.max_downtime_ms,
        bandwidth_mib_s=request.bandwidth_mib_s,
        probe_limit=request.probe_limit,
        measure=True,
        # Who asks about one host has often just repaired, or broken, something there.
        fresh=target is not None,
    )
    checked = await preflight.check(wanted, patience=PATIENCE_SECONDS)
    return CheckMigrationResponse(candidates=checked.candidates, source_host=host_name(checked.source))


def move_of(
    record: InstanceRecord,
    status: InstanceStatus,
    *,
    target: HostId | None,
    excluded: dict[HostId, str],
) -> PlacementRequest:
    """What placement has to find for a guest that moves live."""
    return PlacementRequest(
        vcpus=record.vcpus,
        memory_mib=record.memory_mib,
        disk_bytes=record.disk_bytes,
        networks=[NetworkId(port.network) for port in status.ports],
        host_id=target,
        excluded=excluded,
        source_host_id=HostId(status.host_id),
        source_pool=status.pool,
        machine_type=status.machine_type,
    )


def _read(store: StoreView, instance: InstanceId) -> tuple[InstanceRecord, InstanceStatus]:
    status = store.statuses.get(store.keys.instance_status(instance))
    record = next((entry.value for entry in store.instances.items() if entry.value.id == instance), None)
    if status is None or record is None:
        raise not_found(f"projects/-/instances/{instance}")
    return record, status.value


def _host(store: StoreView, name: str) -> HostId | None:
    if not name:
        return None
    host = store.host_named(name.rpartition("/")[2])
    if host is None:
        raise not_found(name)
    return host

"""What a client's request asks of placement."""

from google.protobuf.any_pb2 import Any
from remuda.compute.v1.host_pb2 import ExplainPlacementRequest
from remuda.compute.v1.instance_pb2 import CreateInstanceRequest
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.image.v1.image_pb2 import Image
from remuda_core.errors import invalid_argument, not_found
from remuda_core.ids import FlavorId, HostId, ImageId, InstanceId, NetworkId

from remuda_scheduler.ports import PlacementRequest
from remuda_scheduler.store import StoreView


def placement_request(store: StoreView, packed: Any) -> PlacementRequest:
    """Raises INVALID_ARGUMENT for another message, ..._NOT_FOUND for what it names and is not there."""
    if packed.Is(CreateInstanceRequest.DESCRIPTOR):
        create = CreateInstanceRequest()
        packed.Unpack(create)
        instance = create.instance
        networks = [interface.network for interface in instance.network_interfaces]
        found = store.images.get(store.keys.image(ImageId(_last(instance.image))))
        image = found.value.image if found else Image()
        return _launch(store, instance.flavor, networks, instance.pool, create.host, image)
    if packed.Is(ExplainPlacementRequest.DESCRIPTOR):
        asked = ExplainPlacementRequest()
        packed.Unpack(asked)
        return _launch(store, asked.flavor, list(asked.networks), asked.pool, asked.host, Image())
    if packed.Is(LiveMigrateInstanceRequest.DESCRIPTOR):
        migrate = LiveMigrateInstanceRequest()
        packed.Unpack(migrate)
        return _migration(store, migrate)
    raise invalid_argument("request", f"{packed.type_url!r} is nothing that can be placed")


def _launch(
    store: StoreView, flavor: str, networks: list[str], pool: str, host: str, image: Image
) -> PlacementRequest:
    entry = store.flavors.get(store.keys.flavor(FlavorId(_last(flavor))))
    if entry is None:
        raise not_found(flavor)
    size = entry.value.flavor
    return PlacementRequest(
        vcpus=size.vcpus,
        memory_mib=size.memory_mib,
        disk_bytes=max(size.disk_gib << 30, image.virtual_bytes, image.min_disk_gib << 30),
        networks=[NetworkId(_last(network)) for network in networks],
        pool=pool,
        host_id=_host(store, host),
        architecture=image.architecture,
    )


def _migration(store: StoreView, request: LiveMigrateInstanceRequest) -> PlacementRequest:
    instance = InstanceId(_last(request.name))
    status = store.statuses.get(store.keys.instance_status(instance))
    record = next((entry.value for entry in store.instances.items() if entry.value.id == instance), None)
    if status is None or record is None:
        raise not_found(request.name)
    return PlacementRequest(
        vcpus=record.vcpus,
        memory_mib=record.memory_mib,
        disk_bytes=record.disk_bytes,
        networks=[NetworkId(port.network) for port in status.value.ports],
        host_id=_host(store, request.target_host),
        source_host_id=HostId(status.value.host_id),
        source_pool=status.value.pool,
        machine_type=status.value.machine_type,
    )


def _host(store: StoreView, name: str) -> HostId | None:
    if not name:
        return None
    host = store.host_named(_last(name))
    if host is None:
        raise not_found(name)
    return host


def _last(name: str) -> str:
    return name.rpartition("/")[2]

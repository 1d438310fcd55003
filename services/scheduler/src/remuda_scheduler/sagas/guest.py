"""What several verbs say about a guest: its description for agents, and the answer for clients."""

from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Any

from remuda.agent.v1.common_pb2 import DomainSpec, Nic
from remuda.compute.v1.instance_pb2 import Instance, ObservedState
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda.store.v1.host_pb2 import NetworkRecord
from remuda.store.v1.instance_pb2 import InstanceRecord, InstanceStatus, Port
from remuda_core import names
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import FlavorId, HostId, ImageId, InstanceId, NetworkId, ProjectId

from remuda_scheduler.engine.run import Run

GIB = 1 << 30


async def domain_spec(
    run: Run[Any], record: InstanceRecord, *, ports: Iterable[Port], pool: str, machine_type: str
) -> DomainSpec:
    """The guest as its host shall define it. Raises RemudaError NETWORK_NOT_FOUND."""
    nics = [_nic(port, await network_of(run, NetworkId(port.network))) for port in ports]
    return DomainSpec(
        instance_id=record.id,
        instance_name=names.instance_name(ProjectId(record.project), InstanceId(record.id)),
        hostname=record.display_name,
        vcpus=record.vcpus,
        memory_mib=record.memory_mib,
        pool=pool,
        disk_bytes=record.disk_bytes,
        image_id=record.image_id,
        manifest_digest=record.manifest_digest,
        nics=nics,
        user_data=record.user_data,
        machine_type=machine_type,
    )


async def network_of(run: Run[Any], network: NetworkId) -> NetworkRecord:
    """From etcd: it may be younger than the cache. Raises RemudaError NETWORK_NOT_FOUND."""
    seen = await run.services.etcd.get(run.services.keys.network(network))
    if seen is None:
        raise RemudaError(Reason.NETWORK_NOT_FOUND, f"network {network} does not exist")
    return NetworkRecord.FromString(seen.value)


def _nic(port: Port, record: NetworkRecord) -> Nic:
    network = record.network
    return Nic(
        port_id=port.id,
        network=names.network_name(NetworkId(port.network)),
        physical_network=network.physical_network,
        mac_address=port.mac_address,
        address=port.address,
        prefix_length=IPv4Network(network.cidr, strict=False).prefixlen,
        gateway=network.gateway,
        dns_servers=list(network.dns_servers),
        mtu=network.mtu,
    )


def observed_state(host: str, seen: ObservedInstance) -> ObservedState:
    return ObservedState(
        power_state=seen.power_state,
        reason=seen.reason,
        host=names.host_name(HostId(host)),
        observe_time=seen.observe_time,
    )


async def answer(run: Run[Any], change: InstanceStatus | None = None) -> Instance:
    """The instance as the client gets it when the operation is done; `change` is the status it will have."""
    record, status = await run.instance()
    status = change or status
    message = Instance(
        name=names.instance_name(ProjectId(record.project), InstanceId(record.id)),
        uid=record.id,
        display_name=record.display_name,
        labels=dict(record.labels),
        flavor=names.flavor_name(FlavorId(record.flavor)),
        image=names.image_name(ProjectId(record.image_project), ImageId(record.image_id)),
        pool=status.pool or record.requested_pool,
        state=status.state,
        status_message=status.status_message,
        intent=record.intent,
        observed=status.observed if status.HasField("observed") else None,
        host=names.host_name(HostId(status.host_id)) if status.host_id else "",
        epoch=status.epoch,
        vcpus=record.vcpus,
        memory_mib=record.memory_mib,
        disk_gib=-(-record.disk_bytes // GIB),
        create_time=record.create_time,
    )
    for port in status.ports:
        message.network_interfaces.add(
            network=names.network_name(NetworkId(port.network)),
            address=port.address,
            mac_address=port.mac_address,
        )
    return message

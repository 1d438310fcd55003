"""Instances: three records, one public message."""

from remuda.compute.v1 import instance_pb2 as public
from remuda.store.v1 import instance_pb2 as records
from remuda_core.etcd.cache import Entry
from remuda_core.ids import FlavorId, HostId, ImageId, InstanceId, NetworkId, OperationId, ProjectId
from remuda_core.names import (
    flavor_name,
    host_name,
    image_name,
    instance_name,
    network_name,
    operation_name,
)

GIB = 1 << 30


def instance_message(
    entry: Entry[records.InstanceRecord],
    status: records.InstanceStatus | None,
    claim: records.Claim | None,
) -> public.Instance:
    """`status` is missing only for a moment, between two watches; the instance then shows as CREATING."""
    record = entry.value
    message = public.Instance(
        name=instance_name(ProjectId(record.project), InstanceId(record.id)),
        uid=record.id,
        display_name=record.display_name,
        etag=str(entry.mod_revision) if entry.mod_revision else "",
        labels=dict(record.labels),
        flavor=flavor_name(FlavorId(record.flavor)),
        image=image_name(ProjectId(record.image_project), ImageId(record.image_id)),
        pool=record.requested_pool,
        state=public.Instance.STATE_CREATING,
        intent=record.intent,
        vcpus=record.vcpus,
        memory_mib=record.memory_mib,
        disk_gib=-(-record.disk_bytes // GIB),
        create_time=record.create_time,
        update_time=record.create_time,
    )
    if claim is not None:
        message.operation = operation_name(OperationId(claim.operation_id))
    if status is not None:
        _add_status(message, status)
    if not message.network_interfaces:
        message.network_interfaces.extend(record.requested_interfaces)
    return message


def _add_status(message: public.Instance, status: records.InstanceStatus) -> None:
    message.state = status.state
    message.status_message = status.status_message
    message.epoch = status.epoch
    message.pool = status.pool or message.pool
    message.host = host_name(HostId(status.host_id)) if status.host_id else ""
    if status.HasField("observed"):
        message.observed.CopyFrom(status.observed)
    if status.HasField("update_time"):
        message.update_time.CopyFrom(status.update_time)
    for port in status.ports:
        message.network_interfaces.add(
            network=network_name(NetworkId(port.network)),
            address=port.address,
            mac_address=port.mac_address,
        )

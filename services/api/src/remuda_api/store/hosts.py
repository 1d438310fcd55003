"""Hosts: what the operator owns, what the leader knows, what is used."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from remuda.compute.v1 import host_pb2 as public
from remuda.store.v1 import host_pb2 as records
from remuda.store.v1 import instance_pb2, operation_pb2
from remuda_core.etcd.cache import Entry
from remuda_core.ids import HostId
from remuda_core.names import host_name


@dataclass(slots=True)
class Usage:
    """What instances and reservations take on one host."""

    vcpus: int = 0
    memory_mib: int = 0
    instances: int = 0

    def add(self, *, vcpus: int, memory_mib: int, instances: int) -> None:
        self.vcpus += vcpus
        self.memory_mib += memory_mib
        self.instances += instances


def usage_by_host(
    instances: Iterable[instance_pb2.InstanceRecord],
    host_of: Mapping[str, str],
    journals: Iterable[operation_pb2.Journal],
) -> dict[str, Usage]:
    """`host_of`: instance id to host id, for instances that have a host.

    A reservation for an instance on the host where it already counts is not counted twice.
    """
    found: dict[str, Usage] = {}
    for record in instances:
        if host := host_of.get(record.id):
            found.setdefault(host, Usage()).add(vcpus=record.vcpus, memory_mib=record.memory_mib, instances=1)
    for journal in journals:
        for held in journal.reservations:
            if host_of.get(held.instance_id) != held.host_id:
                found.setdefault(held.host_id, Usage()).add(
                    vcpus=held.vcpus, memory_mib=held.memory_mib, instances=0
                )
    return found


def host_message(
    entry: Entry[records.HostRecord], status: records.HostStatus | None, usage: Usage | None
) -> public.Host:
    record = entry.value
    message = public.Host(
        name=host_name(HostId(record.id)),
        uid=record.id,
        display_name=record.display_name,
        etag=str(entry.mod_revision) if entry.mod_revision else "",
        state=public.Host.STATE_ENROLLING,
        cordoned=record.cordoned,
        create_time=record.create_time,
    )
    if status is not None:
        message.state = status.state or public.Host.STATE_ENROLLING
        message.boot_id = status.boot_id
        message.agent_endpoint = status.agent_endpoint
        if status.HasField("inventory"):
            message.inventory.CopyFrom(status.inventory)
            message.warnings.extend(status.inventory.warnings)
        if status.HasField("state_time"):
            message.state_time.CopyFrom(status.state_time)
    if usage is not None:
        message.usage.vcpus = usage.vcpus
        message.usage.memory_mib = usage.memory_mib
        message.usage.instances = usage.instances
    return message

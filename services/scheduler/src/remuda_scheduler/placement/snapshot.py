"""The hosts as placement sees them, derived from records, sessions and open reservations. Pure.

Allocations are kept in no book of their own: they are what instance_status says, plus what the journals of
open operations reserve. So nothing can leak.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from remuda.compute.v1.host_pb2 import Host, HostInventory
from remuda.compute.v1.instance_pb2 import Instance
from remuda.store.v1.instance_pb2 import InstanceRecord, InstanceStatus
from remuda.store.v1.operation_pb2 import Reservation
from remuda_core.ids import HostId, InstanceId

from remuda_scheduler.placement.model import HostFacts, Pool


@dataclass(slots=True)
class Usage:
    """What is taken on one host."""

    vcpus: int = 0
    memory_mib: int = 0
    instances: int = 0
    reserved_disk_bytes: Counter[str] = field(default_factory=Counter)
    """Per pool name."""


def usage_by_host(
    records: Mapping[InstanceId, InstanceRecord],
    statuses: Mapping[InstanceId, InstanceStatus],
    reservations: Iterable[Reservation],
) -> dict[HostId, Usage]:
    """An instance counts where it lives whatever its power state: it may be started at any time.

    A reservation of an instance on the host where it already lives is not counted twice.
    """
    usage: dict[HostId, Usage] = {}
    for instance, status in statuses.items():
        record = records.get(instance)
        if not status.host_id or status.state == Instance.STATE_SHELVED:
            continue
        taken = usage.setdefault(HostId(status.host_id), Usage())
        taken.instances += 1
        if record is not None:
            taken.vcpus += record.vcpus
            taken.memory_mib += record.memory_mib
    for held in reservations:
        placed = statuses.get(InstanceId(held.instance_id))
        if placed is not None and placed.host_id == held.host_id:
            continue
        taken = usage.setdefault(HostId(held.host_id), Usage())
        taken.instances += 1
        taken.vcpus += held.vcpus
        taken.memory_mib += held.memory_mib
        taken.reserved_disk_bytes[held.pool] += held.disk_bytes
    return usage


def host_facts(
    *,
    host: HostId,
    name: str,
    cordoned: bool,
    state: "Host.State.ValueType",
    inventory: HostInventory,
    usage: Usage,
) -> HostFacts:
    """One host; `inventory` is the attached agent's last one, or the stored one."""
    pools = {
        pool.name: Pool(
            name=pool.name,
            uid=pool.uid,
            shared=pool.shared,
            capacity_bytes=pool.capacity_bytes,
            available_bytes=pool.available_bytes,
        )
        for pool in inventory.pools
    }
    return HostFacts(
        id=host,
        name=name,
        up=state == Host.STATE_UP,
        state=Host.State.Name(state).removeprefix("STATE_").lower(),
        cordoned=cordoned,
        vcpus=inventory.vcpus,
        memory_mib=inventory.memory_mib,
        architecture=inventory.architecture,
        domain_type=inventory.domain_type,
        migration_transport=inventory.migration_transport,
        pools=pools,
        physical_networks=frozenset(inventory.physical_networks),
        machine_types=frozenset(inventory.machine_types),
        used_vcpus=usage.vcpus,
        used_memory_mib=usage.memory_mib,
        reserved_disk_bytes={
            pools[pool].uid: size for pool, size in usage.reserved_disk_bytes.items() if pool in pools
        },
        instances=usage.instances,
    )

"""The store as the janitor judges by it: read at one revision, never from a cache."""

from collections.abc import AsyncIterator

from remuda.store.v1.host_pb2 import Debt, HostRecord, HostStatus
from remuda.store.v1.instance_pb2 import Claim, InstanceRecord, InstanceStatus
from remuda.store.v1.operation_pb2 import Journal
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.etcd.model import KeyValue
from remuda_core.ids import HostId, InstanceId, OperationId
from remuda_core.names import operation_name

from remuda_scheduler.janitor.judging import Known, Recorded


async def read_known(etcd: Etcd, keys: Keys, host: HostId) -> Known:
    """To be called when the host has been listed, not before: see janitor/service.py."""
    revision = (await etcd.range_key(keys.host(host))).revision

    async def read(prefix: str) -> AsyncIterator[KeyValue]:
        async for page in etcd.pages(prefix, revision=revision):
            for kv in page.kvs:
                yield kv

    digests: dict[InstanceId, str] = {}
    async for kv in read(keys.instances):
        record = InstanceRecord.FromString(kv.value)
        digests[InstanceId(record.id)] = record.manifest_digest
    records: dict[InstanceId, Recorded] = {}
    async for kv in read(keys.instance_statuses):
        instance, status = InstanceId(kv.key.rpartition("/")[2]), InstanceStatus.FromString(kv.value)
        records[instance] = Recorded(
            host_id=HostId(status.host_id),
            epoch=status.epoch,
            pool=status.pool,
            manifest_digest=digests.get(instance, ""),
        )
    held = {
        InstanceId(kv.key.rpartition("/")[2]): operation_name(
            OperationId(Claim.FromString(kv.value).operation_id)
        )
        async for kv in read(keys.claims)
    }
    debts = [Debt.FromString(kv.value) async for kv in read(keys.debts)]
    reservations = [
        one
        for kv in [kv async for kv in read(keys.journals)]
        for one in Journal.FromString(kv.value).reservations
    ]
    names = {
        HostId(found.id): found.display_name
        for kv in [kv async for kv in read(keys.hosts)]
        for found in [HostRecord.FromString(kv.value)]
    }
    status_kv = await etcd.get(keys.host_status(host), revision=revision)
    pools = HostStatus.FromString(status_kv.value).inventory.pools if status_kv else ()
    shared = frozenset(pool.name for pool in pools if pool.shared)
    here = [
        (one.pool, instance) for instance, one in records.items() if one.host_id == host or one.pool in shared
    ]
    here += [(one.pool, InstanceId(one.instance_id)) for one in reservations if one.host_id == host]
    # A debt does not say its pool in one place: whatever the host owes for needs its base on any.
    owing = [InstanceId(debt.instance_id) for debt in debts if debt.host_id == host]
    here += [(pool.name, instance) for pool in pools for instance in owing]
    return Known(
        host_id=host,
        records=records,
        held=held,
        owed={
            InstanceId(
                debt.instance_id
            ): f"{names.get(HostId(debt.host_id), debt.host_id)} owes {debt.step} for it"
            for debt in debts
        },
        bases=frozenset((pool, digests[instance]) for pool, instance in here if digests.get(instance)),
        shared_pools=shared,
        host_names=names,
    )

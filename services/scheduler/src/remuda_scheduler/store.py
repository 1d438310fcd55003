"""Everything that the leader reads often, kept by one watch per prefix.

What a decision must not get wrong (instance, status, claim) a saga reads from etcd itself; the caches are for
finding work, for placement and for facts that change rarely.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message
from remuda.compute.v1.host_pb2 import Host
from remuda.store.v1.host_pb2 import Debt, FlavorRecord, HostRecord, HostStatus, NetworkRecord
from remuda.store.v1.image_pb2 import DamageRecord, ImageRecord
from remuda.store.v1.instance_pb2 import Claim, InstanceRecord, InstanceStatus
from remuda.store.v1.operation_pb2 import CancelRecord, Journal, OperationRecord
from remuda_core.etcd.cache import PrefixCache
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.etcd.model import KeyValue
from remuda_core.ids import HostId, InstanceId, OperationId

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreView:
    """All caches live until `open_store` is left."""

    keys: Keys
    instances: PrefixCache[InstanceRecord]
    statuses: PrefixCache[InstanceStatus]
    claims: PrefixCache[Claim]
    operations: PrefixCache[OperationRecord]
    journals: PrefixCache[Journal]
    """For the reservations that count as used."""
    cancels: PrefixCache[CancelRecord]
    hosts: PrefixCache[HostRecord]
    host_statuses: PrefixCache[HostStatus]
    debts: PrefixCache[Debt]
    flavors: PrefixCache[FlavorRecord]
    networks: PrefixCache[NetworkRecord]
    images: PrefixCache[ImageRecord]
    damage: PrefixCache[DamageRecord]
    """Chunks that the image store has found damaged."""

    def host(self, host: HostId) -> HostRecord | None:
        entry = self.hosts.get(self.keys.host(host))
        return None if entry is None else entry.value

    def host_status(self, host: HostId) -> HostStatus | None:
        entry = self.host_statuses.get(self.keys.host_status(host))
        return None if entry is None else entry.value

    def host_named(self, name: str) -> HostId | None:
        """`name` is a UUID or a host name."""
        for entry in self.hosts.items():
            if name in (entry.value.id, entry.value.display_name):
                return HostId(entry.value.id)
        return None

    def fenced(self, host: HostId) -> bool:
        """It is proven that nothing runs there."""
        status = self.host_status(host)
        return status is not None and status.state == Host.STATE_FENCED

    def claim(self, instance: InstanceId) -> Claim | None:
        entry = self.claims.get(self.keys.claim(instance))
        return None if entry is None else entry.value

    def cancelled(self, operation: OperationId) -> bool:
        return self.cancels.get(self.keys.cancel(operation)) is not None


@asynccontextmanager
async def open_store(etcd: Etcd, keys: Keys) -> AsyncIterator[StoreView]:
    """Waits until each cache has listed once."""
    async with AsyncExitStack() as stack:

        async def cache(prefix: str, kind: type[M]) -> PrefixCache[M]:
            return await stack.enter_async_context(PrefixCache(etcd, prefix, decoder(kind)))

        yield StoreView(
            keys=keys,
            instances=await cache(keys.instances, InstanceRecord),
            statuses=await cache(keys.instance_statuses, InstanceStatus),
            claims=await cache(keys.claims, Claim),
            operations=await cache(keys.operations, OperationRecord),
            journals=await cache(keys.journals, Journal),
            cancels=await cache(keys.cancels, CancelRecord),
            hosts=await cache(keys.hosts, HostRecord),
            host_statuses=await cache(keys.host_statuses, HostStatus),
            debts=await cache(keys.debts, Debt),
            flavors=await cache(keys.flavors, FlavorRecord),
            networks=await cache(keys.networks, NetworkRecord),
            images=await cache(keys.images, ImageRecord),
            damage=await cache(keys.all_image_damage, DamageRecord),
        )


def decoder(kind: type[M]) -> Callable[[KeyValue], M]:
    return lambda kv: kind.FromString(kv.value)

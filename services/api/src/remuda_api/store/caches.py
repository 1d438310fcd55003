"""Everything that the gateway reads, kept by one watch per prefix."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message
from remuda.store.v1 import host_pb2, image_pb2, instance_pb2, operation_pb2
from remuda_core.etcd.cache import Entry, PrefixCache
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.etcd.model import KeyValue

M = TypeVar("M", bound=Message)


def decoder(kind: type[M]) -> Callable[[KeyValue], M]:
    return lambda kv: kind.FromString(kv.value)


def entry_of(kv: KeyValue, kind: type[M]) -> Entry[M]:
    """A key read from etcd itself, in the shape that the caches have."""
    return Entry(
        key=kv.key,
        value=kind.FromString(kv.value),
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Caches:
    """All of them live until `open_caches` is left."""

    keys: Keys
    instances: PrefixCache[instance_pb2.InstanceRecord]
    statuses: PrefixCache[instance_pb2.InstanceStatus]
    claims: PrefixCache[instance_pb2.Claim]
    operations: PrefixCache[operation_pb2.OperationRecord]
    cancels: PrefixCache[operation_pb2.CancelRecord]
    hosts: PrefixCache[host_pb2.HostRecord]
    host_statuses: PrefixCache[host_pb2.HostStatus]
    flavors: PrefixCache[host_pb2.FlavorRecord]
    networks: PrefixCache[host_pb2.NetworkRecord]
    ports: PrefixCache[instance_pb2.PortRecord]
    images: PrefixCache[image_pb2.ImageRecord]
    migrations: PrefixCache[instance_pb2.MigrationRecord]
    journals: PrefixCache[operation_pb2.Journal]
    """For the reservations that count as used."""
    leader: PrefixCache[operation_pb2.LeaderRecord]
    """Holds one key or none."""


@asynccontextmanager
async def open_caches(etcd: Etcd, keys: Keys) -> AsyncIterator[Caches]:
    """Waits until each has listed once; etcd may come later than this service."""
    async with AsyncExitStack() as stack:

        async def cache(prefix: str, kind: type[M]) -> PrefixCache[M]:
            return await stack.enter_async_context(PrefixCache(etcd, prefix, decoder(kind)))

        yield Caches(
            keys=keys,
            instances=await cache(keys.instances, instance_pb2.InstanceRecord),
            statuses=await cache(keys.instance_statuses, instance_pb2.InstanceStatus),
            claims=await cache(keys.claims, instance_pb2.Claim),
            operations=await cache(keys.operations, operation_pb2.OperationRecord),
            cancels=await cache(keys.cancels, operation_pb2.CancelRecord),
            hosts=await cache(keys.hosts, host_pb2.HostRecord),
            host_statuses=await cache(keys.host_statuses, host_pb2.HostStatus),
            flavors=await cache(keys.flavors, host_pb2.FlavorRecord),
            networks=await cache(keys.networks, host_pb2.NetworkRecord),
            ports=await cache(keys.all_ports, instance_pb2.PortRecord),
            images=await cache(keys.images, image_pb2.ImageRecord),
            migrations=await cache(keys.migrations, instance_pb2.MigrationRecord),
            journals=await cache(keys.journals, operation_pb2.Journal),
            leader=await cache(keys.leader, operation_pb2.LeaderRecord),
        )

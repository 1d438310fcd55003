"""Single resources: from the caches, and from etcd where a cache has not seen them yet."""

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

from google.longrunning import operations_pb2
from google.protobuf.message import Message
from remuda.compute.v1 import event_pb2, flavor_pb2, host_pb2, instance_pb2, migration_pb2, network_pb2
from remuda.compute.v1 import operation_pb2 as public_operation
from remuda.store.v1 import host_pb2 as host_records
from remuda.store.v1 import image_pb2 as image_records
from remuda.store.v1 import instance_pb2 as records
from remuda.store.v1 import operation_pb2 as operation_records
from remuda_core import names
from remuda_core.errors import Reason, RemudaError, not_found
from remuda_core.etcd.cache import Entry, PrefixCache
from remuda_core.etcd.client import Etcd
from remuda_core.ids import HostId, InstanceId, NetworkId, OperationId
from remuda_core.names import InstanceName

from remuda_api.admission.resolving import Resolver
from remuda_api.listing.instances import InstanceRow, InstanceSnapshot
from remuda_api.store.caches import Caches, entry_of
from remuda_api.store.flavors import flavor_message
from remuda_api.store.hosts import Usage, host_message, usage_by_host
from remuda_api.store.instances import instance_message
from remuda_api.store.networks import network_message
from remuda_api.store.operations import operation_message

M = TypeVar("M", bound=Message)

_SHOW_SECONDS = 3.0


class Reads:
    def __init__(self, etcd: Etcd, caches: Caches, resolver: Resolver) -> None:
        self._etcd = etcd
        self._caches = caches
        self._keys = caches.keys
        self._resolver = resolver
        self._usage: tuple[tuple[int, int, int], Mapping[str, Usage]] = ((0, 0, 0), {})

    async def require_revision(self, wanted: int) -> None:
        """Raises RemudaError REVISION_AHEAD when etcd has never been there.

        The read is linearizable: whoever was told of `wanted` by anybody finds it, unless etcd was restored
        from a backup since.
        """
        present = (await self._etcd.range_key(self._keys.leader)).revision
        if wanted > present:
            raise RemudaError(
                Reason.REVISION_AHEAD,
                f"the store is at revision {present}, {wanted} was asked for",
                metadata={"revision": str(present)},
            )

    # --- instances ---

    async def instance_name(self, name: str, *, field: str = "name") -> InstanceName:
        return await self._resolver.instance(name, field=field)

    async def instance(self, name: str) -> instance_pb2.Instance:
        row = await self.row(name)
        return instance_message(row.entry, row.status, row.claim)

    async def row(self, name: str, *, field: str = "name") -> InstanceRow:
        """Raises RemudaError INSTANCE_NOT_FOUND."""
        found = await self._resolver.instance(name, field=field)
        key = self._keys.instance(found.project, found.instance)
        snapshot = InstanceSnapshot.of(self._caches)
        entry = snapshot.instances.get(key)
        if entry is not None:
            return snapshot.row(entry)
        instance = await self._etcd.get(key)
        if instance is None:
            raise not_found(name)
        status = await self._etcd.get(self._keys.instance_status(found.instance))
        claim = await self._etcd.get(self._keys.claim(found.instance))
        return InstanceRow(
            entry=entry_of(instance, records.InstanceRecord),
            status=records.InstanceStatus.FromString(status.value) if status else None,
            claim=records.Claim.FromString(claim.value) if claim else None,
        )

    async def events(self, instance: InstanceId, *, last: int) -> list[event_pb2.InstanceEvent]:
        """Oldest first, from etcd: nobody asks for them often enough to keep them all here."""
        page = await self._etcd.range_prefix(self._keys.events(instance))
        kept = page.kvs[-last:] if last else page.kvs
        return [records.EventRecord.FromString(kv.value).event for kv in kept]

    async def migration(self, name: str) -> migration_pb2.Migration:
        parsed = names.parse_migration(name)
        parent = await self._resolver.instance(names.instance_name(parsed.project, parsed.instance))
        key = self._keys.migration(parent.instance, parsed.migration)
        entry = await self._entry(self._caches.migrations, key, records.MigrationRecord)
        full = names.migration_name(parent.project, parent.instance, parsed.migration)
        if entry is None or entry.value.migration.name != full:
            raise not_found(name)
        return entry.value.migration

    # --- operations ---

    async def operation_entry(self, operation: OperationId) -> Entry[operation_records.OperationRecord]:
        """Raises RemudaError OPERATION_NOT_FOUND."""
        key = self._keys.operation(operation)
        entry = await self._entry(self._caches.operations, key, operation_records.OperationRecord)
        if entry is None:
            raise not_found(names.operation_name(operation))
        return entry

    def cached_operation(self, operation: OperationId) -> Entry[operation_records.OperationRecord] | None:
        return self._caches.operations.get(self._keys.operation(operation))

    @property
    def operations_revision(self) -> int:
        return self._caches.operations.revision

    async def show(self, ended: Entry[operation_records.OperationRecord]) -> None:
        """Waits until reads show what an operation that has ended did; not for ever."""
        caches = self._caches
        changed: list[PrefixCache[Any]] = [caches.statuses, caches.claims]
        if ended.value.action == "DeleteInstance":
            changed.append(caches.instances)
        if ended.value.metadata.migration:
            changed.append(caches.migrations)
        waits = (cache.wait_revision(ended.mod_revision, _SHOW_SECONDS) for cache in changed)
        await asyncio.gather(*waits, return_exceptions=True)

    def operation_message(
        self,
        entry: Entry[operation_records.OperationRecord],
        progress: public_operation.Progress | None = None,
    ) -> operations_pb2.Operation:
        cancel = self._caches.cancels.get(self._keys.cancel(OperationId(entry.value.id)))
        return operation_message(entry.value, cancel_requested=cancel is not None, progress=progress)

    # --- the rest ---

    async def flavor(self, name: str) -> flavor_pb2.Flavor:
        key = self._keys.flavor(names.parse_flavor(name))
        entry = await self._entry(self._caches.flavors, key, host_records.FlavorRecord)
        if entry is None:
            raise not_found(name)
        return flavor_message(entry)

    async def network(self, name: str) -> network_pb2.Network:
        key = self._keys.network(names.parse_network(name))
        entry = await self._entry(self._caches.networks, key, host_records.NetworkRecord)
        if entry is None:
            raise not_found(name)
        return self.network_message(entry)

    def network_message(self, entry: Entry[host_records.NetworkRecord]) -> network_pb2.Network:
        prefix = self._keys.ports(NetworkId(entry.value.id))
        return network_message(entry, ports=sum(1 for _ in self._caches.ports.items(prefix=prefix)))

    async def image_entry(self, name: str, *, newest: bool = False) -> Entry[image_records.ImageRecord]:
        """Whether the caller may see it is another question. `newest`: from etcd, not from a cache."""
        found = await self._resolver.image(name)
        key = self._keys.image(found.image)
        cached = None if newest else self._caches.images.get(key)
        entry = cached or await self._stored(key, image_records.ImageRecord)
        if entry is None or entry.value.project != found.project:
            raise not_found(name)
        return entry

    async def host(self, name: str) -> host_pb2.Host:
        host = await self._resolver.host(name)
        entry = await self._entry(self._caches.hosts, self._keys.host(host), host_records.HostRecord)
        if entry is None:
            raise not_found(name)
        return self.host_message(entry)

    def host_message(self, entry: Entry[host_records.HostRecord]) -> host_pb2.Host:
        host = HostId(entry.value.id)
        status = self._caches.host_statuses.get(self._keys.host_status(host))
        return host_message(
            entry, status.value if status is not None else None, self.usage().get(host, Usage())
        )

    def usage(self) -> Mapping[str, Usage]:
        """By host UUID; counted again only when something has changed."""
        caches = self._caches
        state = (caches.instances.revision, caches.statuses.revision, caches.journals.revision)
        if self._usage[0] != state:
            host_of = {entry.key.rpartition("/")[2]: entry.value.host_id for entry in caches.statuses.items()}
            instances = (entry.value for entry in caches.instances.items())
            journals = (entry.value for entry in caches.journals.items())
            self._usage = (state, usage_by_host(instances, host_of, journals))
        return self._usage[1]

    async def _entry(self, cache: PrefixCache[M], key: str, kind: type[M]) -> Entry[M] | None:
        return cache.get(key) or await self._stored(key, kind)

    async def _stored(self, key: str, kind: type[M]) -> Entry[M] | None:
        kv = await self._etcd.get(key)
        return entry_of(kv, kind) if kv is not None else None

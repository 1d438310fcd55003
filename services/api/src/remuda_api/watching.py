"""WatchInstances: everything there is, then every change, joined from three caches."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

from remuda.compute.v1 import instance_pb2 as public
from remuda.store.v1 import instance_pb2 as records
from remuda_core.etcd.cache import Entry, PrefixCache, Subscription
from remuda_core.ids import InstanceId, ProjectId
from remuda_core.names import instance_name

from remuda_api.store.caches import Caches
from remuda_api.store.instances import instance_message

Response = public.WatchInstancesResponse


class InstanceWatcher:
    def __init__(self, caches: Caches) -> None:
        self._caches = caches

    async def watch(self, prefix: str, may_see: Callable[[ProjectId], bool]) -> AsyncIterator[Response]:
        """`prefix`: of the keys of the instances. A slow reader gets fewer messages, and the newest state."""
        async with AsyncExitStack() as stack:
            dirty = _Dirty()
            followed: tuple[PrefixCache[Any], ...] = (
                self._caches.instances,
                self._caches.statuses,
                self._caches.claims,
            )
            for cache in followed:
                changes = await stack.enter_async_context(cache.subscribe())
                task = asyncio.create_task(dirty.collect(changes))
                stack.push_async_callback(_stop, task)
            session = _Session(self._caches, prefix, may_see)
            for response in session.listing():
                yield response
            yield Response(kind=Response.KIND_SYNCED, revision=session.revision)
            async for instance in dirty.drain():
                for response in session.changed(instance):
                    yield response


class _Session:
    """What one client has been told."""

    def __init__(self, caches: Caches, prefix: str, may_see: Callable[[ProjectId], bool]) -> None:
        self._caches = caches
        self._prefix = prefix
        self._may_see = may_see
        # What was sent last, by instance: its key, and the revisions that it was made from.
        self._sent: dict[InstanceId, tuple[str, tuple[int, int, int]]] = {}
        self.revision = caches.instances.revision

    def listing(self) -> Iterator[Response]:
        """One by one: there may be more than a client takes in quickly."""
        snapshot = self._caches.instances.snapshot()
        self.revision = snapshot.revision
        for entry in snapshot.items(prefix=self._prefix):
            yield from self._upsert(entry)

    def changed(self, instance: InstanceId) -> list[Response]:
        entry = self._entry(instance)
        if entry is not None:
            return self._upsert(entry)
        gone = self._sent.pop(instance, None)
        if gone is None:
            return []
        project = ProjectId(gone[0].rpartition("/")[0].rpartition("/")[2])
        name = instance_name(project, instance)
        return [
            Response(
                kind=Response.KIND_DELETE,
                instance=public.Instance(name=name, uid=instance),
                revision=self._caches.instances.revision,
            )
        ]

    def _entry(self, instance: InstanceId) -> Entry[records.InstanceRecord] | None:
        """A status or a claim does not say in which project the instance is."""
        known = self._sent.get(instance)
        if known is not None:
            return self._caches.instances.get(known[0])
        status = self._caches.statuses.get(self._caches.keys.instance_status(instance))
        if status is None:
            return None
        key = self._caches.keys.instance(ProjectId(status.value.project), instance)
        return self._caches.instances.get(key) if key.startswith(self._prefix) else None

    def _upsert(self, entry: Entry[records.InstanceRecord]) -> list[Response]:
        if not self._may_see(ProjectId(entry.value.project)):
            return []
        instance = InstanceId(entry.value.id)
        status = self._caches.statuses.get(self._caches.keys.instance_status(instance))
        if status is None:
            # Its watch is some milliseconds behind; the change that it brings comes here again.
            return []
        claim = self._caches.claims.get(self._caches.keys.claim(instance))
        made_of = (entry.mod_revision, status.mod_revision, claim.mod_revision if claim else 0)
        if self._sent.get(instance) == (entry.key, made_of):
            return []
        self._sent[instance] = (entry.key, made_of)
        message = instance_message(entry, status.value, claim.value if claim else None)
        return [Response(kind=Response.KIND_UPSERT, instance=message, revision=max(made_of))]


class _Dirty:
    """Instances that changed since they were looked at, in order, each once."""

    def __init__(self) -> None:
        self._ids: dict[InstanceId, None] = {}
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None
        self._ended = False

    async def collect(self, changes: Subscription[Any]) -> None:
        try:
            async for change in changes:
                self._ids[InstanceId(change.key.rpartition("/")[2])] = None
                self._wake.set()
        except Exception as error:
            self._failure = error
        self._ended = True
        self._wake.set()

    async def drain(self) -> AsyncIterator[InstanceId]:
        while True:
            await self._wake.wait()
            self._wake.clear()
            ids, self._ids = self._ids, {}
            for instance in ids:
                yield instance
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

"""Following operations: one subscription to the caches, any number of watchers woken by operation."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from google.longrunning import operations_pb2
from remuda.compute.v1 import operation_pb2 as public
from remuda.store.v1.operation_pb2 import OperationRecord
from remuda_core.errors import not_found
from remuda_core.etcd.cache import Entry, PrefixCache
from remuda_core.ids import OperationId
from remuda_core.names import operation_name

from remuda_api.leader import LeaderLink
from remuda_api.reading import Reads
from remuda_api.store.caches import Caches


class OperationHub:
    """Use with `async with`."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches
        self._watchers: dict[OperationId, set[asyncio.Event]] = defaultdict(set)
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self.ended = False
        """The caches have failed or closed: nobody will be woken again."""

    async def __aenter__(self) -> Self:
        for cache in (self._caches.operations, self._caches.cancels):
            self._tasks.append(asyncio.create_task(self._follow(cache), name=f"follow {cache.prefix}"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextmanager
    def follow(self, operation: OperationId) -> Iterator[asyncio.Event]:
        """An event that is set after every change of the operation or of its cancel flag."""
        event = asyncio.Event()
        self._watchers[operation].add(event)
        try:
            yield event
        finally:
            self._watchers[operation].discard(event)
            if not self._watchers[operation]:
                del self._watchers[operation]

    async def _follow(self, cache: PrefixCache[Any]) -> None:
        try:
            async with cache.subscribe() as changes:
                async for change in changes:
                    for event in self._watchers.get(OperationId(change.key.rpartition("/")[2]), ()):
                        event.set()
        finally:
            self.ended = True
            for events in self._watchers.values():
                for event in events:
                    event.set()


class OperationWatcher:
    """An operation until it ends: from the caches, with the leader's live progress on top."""

    def __init__(self, hub: OperationHub, reads: Reads, leader: LeaderLink) -> None:
        self._hub = hub
        self._reads = reads
        self._leader = leader

    async def watch(self, operation: OperationId) -> AsyncIterator[operations_pb2.Operation]:
        """Raises RemudaError OPERATION_NOT_FOUND, also when it is deleted meanwhile."""
        with self._hub.follow(operation) as wake:
            entry = await self._reads.operation_entry(operation)
            live = _LiveProgress(wake)
            feed = asyncio.create_task(live.follow(self._leader.progress(operation)))
            try:
                last = None
                while True:
                    entry = await self._settled(self._newest(operation, entry))
                    message = self._reads.operation_message(entry, live.newest)
                    if message != last:
                        last = message
                        yield message
                    if entry.value.done or self._hub.ended:
                        return
                    await wake.wait()
                    wake.clear()
            finally:
                feed.cancel()
                with suppress(asyncio.CancelledError):
                    await feed

    async def wait(self, operation: OperationId, seconds: float) -> operations_pb2.Operation:
        """The operation when it ended, or as it is after so many seconds."""
        with self._hub.follow(operation) as wake:
            entry = await self._reads.operation_entry(operation)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while not entry.value.done and not self._hub.ended:
                        await wake.wait()
                        wake.clear()
                        entry = self._newest(operation, entry)
            return self._reads.operation_message(await self._settled(self._newest(operation, entry)))

    async def _settled(self, entry: Entry[OperationRecord]) -> Entry[OperationRecord]:
        """Whoever hears that an operation is over reads what it did: that came in the same transaction, but
        by other watches.
        """
        if entry.value.done:
            await self._reads.show(entry)
        return entry

    def _newest(self, operation: OperationId, known: Entry[OperationRecord]) -> Entry[OperationRecord]:
        """The cache may be behind what was read from etcd, or ahead of it."""
        cached = self._reads.cached_operation(operation)
        if cached is not None:
            return max(known, cached, key=lambda entry: entry.mod_revision)
        if self._reads.operations_revision >= known.mod_revision:
            raise not_found(operation_name(operation))
        return known


class _LiveProgress:
    def __init__(self, wake: asyncio.Event) -> None:
        self.newest: public.Progress | None = None
        self._wake = wake

    async def follow(self, source: AsyncIterator[public.Progress]) -> None:
        async for progress in source:
            # A new leader may know less for a moment: what a client has seen does not go backwards.
            # Only within one kind of work: the next kind has a zero of its own.
            if self.newest is not None and self.newest.WhichOneof("detail") == progress.WhichOneof("detail"):
                progress.percent = max(progress.percent, self.newest.percent)
            self.newest = progress
            self._wake.set()

"""Following a cache: a bounded queue that turns into a comparison of snapshots when it overflows."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Generic, Self, TypeVar

from remuda_core.etcd.snapshot import Entry, Snapshot

T = TypeVar("T")


class ChangeKind(Enum):
    PUT = "PUT"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Generic[T]):
    """One key changed. `old` is what the cache held before (None: nothing), `new` what it holds after."""

    kind: ChangeKind
    key: str
    old: Entry[T] | None
    new: Entry[T] | None
    mod_revision: int
    """Revision of the change; for a DELETE found by comparing, the revision at which the key was missed."""


def change(old: Entry[T] | None, new: Entry[T] | None, revision: int) -> Change[T]:
    """`revision` counts for a deletion only; an entry knows its own."""
    if new is not None:
        return Change(kind=ChangeKind.PUT, key=new.key, old=old, new=new, mod_revision=new.mod_revision)
    assert old is not None
    return Change(kind=ChangeKind.DELETE, key=old.key, old=old, new=None, mod_revision=revision)


class Subscription(Generic[T]):
    """Async iterator of Change; use with `async with`. For one consumer.

    Ends when the cache is closed; raises what made the cache fail.
    """

    def __init__(
        self,
        *,
        seen: Snapshot[T],
        present: Callable[[], Snapshot[T]],
        queue_size: int,
        detach: Callable[["Subscription[T]"], object],
    ) -> None:
        """`seen`: what the consumer knows already. `present`: the cache's content now."""
        self.resyncs = 0
        """How often the queue overflowed, and changes were merged."""
        self._seen = seen
        self._present = present
        self._queue_size = queue_size
        self._detach = detach
        self._queue: deque[Change[T]] = deque()
        self._catching_up: Iterator[Change[T]] = iter(())
        # The queue holds nothing that counts: only comparing `_seen` with the present tells what is new.
        self._behind = seen is not present()
        self._wake = asyncio.Event()
        self._ended = False
        self._failure: Exception | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change[T]:
        while True:
            if (found := self._next()) is not None:
                self._seen = _apply(self._seen, found)
                return found
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()

    def _next(self) -> Change[T] | None:
        if (found := next(self._catching_up, None)) is not None:
            return found
        if self._behind:
            self._behind = False
            present = self._present()
            self._catching_up = _changes(self._seen, present)
            return next(self._catching_up, None)
        return self._queue.popleft() if self._queue else None

    def offer(self, changes: Sequence[Change[T]]) -> None:
        """Called by the cache; never waits."""
        if self._behind:
            return
        if len(self._queue) + len(changes) > self._queue_size:
            self._queue.clear()
            self._behind = True
            self.resyncs += 1
        else:
            self._queue.extend(changes)
        self._wake.set()

    def end(self, failure: Exception | None) -> None:
        """No more changes will come; those that are waiting are still delivered."""
        self._ended = True
        self._failure = self._failure or failure
        self._detach(self)
        self._wake.set()


def _changes(seen: Snapshot[T], present: Snapshot[T]) -> Iterator[Change[T]]:
    for old, new in seen.differences(present):
        yield change(old, new, present.revision)


def _apply(seen: Snapshot[T], found: Change[T]) -> Snapshot[T]:
    return seen.without(found.key) if found.new is None else seen.with_entry(found.new)

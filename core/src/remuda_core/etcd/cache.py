"""Everything under a prefix, kept in memory by a list and a watch.

One cache per prefix and process; whoever wants to follow it subscribes here and not at etcd. After a
compaction, or a restore of etcd, it lists again by itself: subscribers get the differences.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Generic, Self, TypeVar

from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import (
    AuthenticationFailed,
    Compacted,
    EtcdError,
    PermissionDenied,
    Unavailable,
)
from remuda_core.etcd.model import Event, EventKind, KeyValue, WatchBatch
from remuda_core.etcd.snapshot import Entry, Snapshot
from remuda_core.etcd.subscription import Change, ChangeKind, Subscription, change
from remuda_core.etcd.transport import backoff
from remuda_core.etcd.watch import Watch

__all__ = ["Change", "ChangeKind", "Entry", "PrefixCache", "Snapshot", "Subscription"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

# How long a reader waits for the watch before etcd is asked whether there is anything to wait for.
_PROBE_AFTER_SECONDS = 0.1
_MOST_PINS = 256
_REFUSED_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Pin(Generic[T]):
    expires_at: float
    snapshot: Snapshot[T]


class PrefixCache(Generic[T]):
    """Use with `async with`: entering waits for the first list, leaving ends the watch.

    `decode` turns a key into a value. None means that the key is none of this cache's business (another kind
    of record under the same prefix). An exception from it is logged, and the key left out and named in
    `undecodable`: one bad record must not stop a service.
    """

    def __init__(
        self,
        etcd: Etcd,
        prefix: str,
        decode: Callable[[KeyValue], T | None],
        *,
        page_size: int = 1000,
    ) -> None:
        self.prefix = prefix
        self.relists = 0
        """How often it had to list again after the first time."""
        self.last_error = ""
        self._etcd = etcd
        self._decode = decode
        self._page_size = page_size
        self._snapshot: Snapshot[T] = Snapshot.empty()
        # Keys in etcd that are not in the snapshot: not ours, or undecodable. `_probe` counts them.
        self._outside: set[str] = set()
        self._undecodable: dict[str, str] = {}
        self._subscriptions: set[Subscription[T]] = set()
        self._pins: dict[int, _Pin[T]] = {}
        self._advanced = asyncio.Event()
        self._probing = asyncio.Lock()
        self._watch: Watch | None = None
        self._task: asyncio.Task[None] | None = None

    # --- life ---

    async def __aenter__(self) -> Self:
        """Waits for etcd as long as it takes. Raises PermissionDenied or AuthenticationFailed."""
        await self._list_until_done(fatal=(PermissionDenied, AuthenticationFailed))
        self._task = asyncio.create_task(self._run(), name=f"cache {self.prefix}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        for subscription in list(self._subscriptions):
            subscription.end(None)

    @property
    def connected(self) -> bool:
        """Whether the watch stands now. While it does not, reads show the past."""
        return self._watch is not None and self._watch.connected

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._follow()
                except Compacted as error:
                    _log.info("cache of %s lists again: %s", self.prefix, error)
                except EtcdError as error:
                    # The watch itself goes on over lost connections; this is a refusal, e.g. of rights.
                    self._note(error)
                    await asyncio.sleep(_REFUSED_PAUSE_SECONDS)
                self.relists += 1
                await self._list_until_done(fatal=())
        except Exception as error:
            # A bug. Everybody who depends on this cache has to notice.
            _log.exception("cache of %s failed", self.prefix)
            for subscription in list(self._subscriptions):
                subscription.end(error)
            raise

    async def _list_until_done(self, *, fatal: tuple[type[EtcdError], ...]) -> None:
        pauses = backoff()
        while True:
            try:
                await self._list()
                break
            except fatal:
                raise
            except EtcdError as error:
                self._note(error)
            await asyncio.sleep(next(pauses))

    def _note(self, error: EtcdError) -> None:
        self.last_error = str(error)
        _log.warning("cache of %s: %s", self.prefix, error)

    async def _list(self) -> None:
        entries: list[Entry[T]] = []
        outside: set[str] = set()
        undecodable: dict[str, str] = {}
        revision = 0
        async for page in self._etcd.pages(self.prefix, page_size=self._page_size):
            revision = page.revision
            for kv in page.kvs:
                entry = self._entry(kv, undecodable)
                if entry is None:
                    outside.add(kv.key)
                else:
                    entries.append(entry)
        new = Snapshot.build(revision, entries)
        changes = [change(old, entry, revision) for old, entry in self._snapshot.differences(new)]
        self._outside, self._undecodable = outside, undecodable
        self._publish(new, changes)

    async def _follow(self) -> None:
        async with self._etcd.watch_prefix(self.prefix, start_revision=self.revision + 1) as watch:
            self._watch = watch
            try:
                async for batch in watch:
                    self._apply(batch)
            finally:
                self._watch = None

    def _apply(self, batch: WatchBatch) -> None:
        snapshot, changes = self._snapshot, []
        for event in batch.events:
            old, new = snapshot.get(event.kv.key), self._new_entry(event)
            if new is not None:
                snapshot = snapshot.with_entry(new)
            elif old is not None:
                snapshot = snapshot.without(old.key)
            else:
                continue
            changes.append(change(old, new, event.kv.mod_revision))
        # With events this may step back behind what `_probe` found: a key that came and went in between. The
        # revision always says whose content this is.
        revision = batch.revision if batch.events else max(batch.revision, self.revision)
        self._publish(snapshot.at_revision(revision), changes)

    def _new_entry(self, event: Event) -> Entry[T] | None:
        key = event.kv.key
        self._outside.discard(key)
        self._undecodable.pop(key, None)
        if event.kind is EventKind.DELETE:
            return None
        entry = self._entry(event.kv, self._undecodable)
        if entry is None:
            self._outside.add(key)
        return entry

    def _entry(self, kv: KeyValue, undecodable: dict[str, str]) -> Entry[T] | None:
        try:
            value = self._decode(kv)
        except Exception as error:
            undecodable[kv.key] = repr(error)
            _log.exception("cannot decode %s at revision %d, leaving it out", kv.key, kv.mod_revision)
            return None
        if value is None:
            return None
        return Entry(
            key=kv.key, value=value, create_revision=kv.create_revision, mod_revision=kv.mod_revision
        )

    def _publish(self, snapshot: Snapshot[T], changes: list[Change[T]]) -> None:
        self._snapshot = snapshot
        if changes:
            for subscription in self._subscriptions:
                subscription.offer(changes)
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()

    # --- reading ---

    @property
    def revision(self) -> int:
        """Revision of etcd whose content this is. Goes back only by what `wait_revision` ran ahead."""
        return self._snapshot.revision

    @property
    def undecodable(self) -> Mapping[str, str]:
        """Keys left out because `decode` failed, with the reason."""
        return MappingProxyType(self._undecodable)

    def __len__(self) -> int:
        return len(self._snapshot)

    def get(self, key: str) -> Entry[T] | None:
        return self._snapshot.get(key)

    def items(self, *, prefix: str = "", start_after: str = "") -> Iterator[Entry[T]]:
        """Entries in key order, as of now, also when the iteration takes long."""
        return self._snapshot.items(prefix=prefix, start_after=start_after)

    def snapshot(self) -> Snapshot[T]:
        """The content now; never changes, and costs nothing to keep."""
        return self._snapshot

    def pin(self, seconds: float) -> Snapshot[T]:
        """The content now, to be found again by its revision through `pinned` for so many seconds."""
        now = time.monotonic()
        for revision in [revision for revision, pin in self._pins.items() if pin.expires_at < now]:
            del self._pins[revision]
        while len(self._pins) >= _MOST_PINS:
            del self._pins[next(iter(self._pins))]
        pin = self._pins.pop(self.revision, None)
        snapshot = self._snapshot if pin is None else pin.snapshot
        self._pins[self.revision] = _Pin(now + seconds, snapshot)
        return snapshot

    def pinned(self, revision: int) -> Snapshot[T] | None:
        """The snapshot pinned at `revision`; None: expired, pushed out by newer ones, another replica's."""
        pin = self._pins.get(revision)
        return pin.snapshot if pin is not None and pin.expires_at >= time.monotonic() else None

    async def wait_revision(self, revision: int, timeout: float) -> None:
        """Wait until the content is at least that of `revision`, `timeout` in seconds.

        Raises Unavailable when it is not by then. Where nothing has changed under the prefix, no event will
        come: after a moment etcd is asked, once for all who wait. That costs etcd a pass over the prefix.
        """
        try:
            async with asyncio.timeout(timeout):
                while self.revision < revision:
                    advanced = self._advanced
                    try:
                        await asyncio.wait_for(advanced.wait(), _PROBE_AFTER_SECONDS)
                    except TimeoutError:
                        await self._probe(revision)
        except TimeoutError:
            raise Unavailable(
                f"the cache of {self.prefix} is at revision {self.revision}, {revision} was asked for"
            ) from None

    async def _probe(self, revision: int) -> None:
        """Move on to etcd's present revision if nothing has changed under the prefix.

        Same number of keys, and none changed after our revision, means the same content: a key put since
        would be newer, or deleted again; a key deleted since would be missing from the count.
        """
        async with self._probing:
            before, outside = self._snapshot, len(self._outside)
            if before.revision >= revision:
                return
            try:
                present, count, newest = await self._etcd.newest(self.prefix)
            except EtcdError as error:
                self._note(error)
                return
            same = count == len(before) + outside and newest <= before.revision
            # Only if the watch has not brought something in the meantime.
            if same and self._snapshot is before and present > before.revision:
                self._publish(before.at_revision(present), [])

    def subscribe(self, *, initial: bool = False, queue_size: int = 1024) -> Subscription[T]:
        """Follow the changes from now on; with `initial`, everything there is comes first, as PUTs.

            async with cache.subscribe(initial=True) as changes:
                async for change in changes: ...

        A subscriber that falls behind by more than `queue_size` changes is not waited for and loses nothing
        that still matters: it gets the difference between what it saw last and the present instead.
        """
        subscription = Subscription(
            seen=Snapshot.empty() if initial else self._snapshot,
            present=self.snapshot,
            queue_size=queue_size,
            detach=self._subscriptions.discard,
        )
        if self._task is None or self._task.done():
            subscription.end(Unavailable(f"the cache of {self.prefix} is not running"))
        else:
            self._subscriptions.add(subscription)
        return subscription

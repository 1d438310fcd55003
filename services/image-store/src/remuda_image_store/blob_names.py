"""Removing blobs so that nobody ever relies on one that is gone, whoever is stopped, killed or late.

A backend takes a deletion from anybody at any time: no lock keeps a process that was stopped in front of it,
and goes on an hour later, from removing a blob. So names are doomed first, in etcd:

    doom the names -> look again whether they are free -> remove the blobs -> lift the doom

and whoever relies on blobs, the other way round: refers to them, reads what is doomed, looks whether they are
there, and in the transaction that counts compares that nothing was doomed since. Of the two, one sees the
other. A doom that its writer never lifts (it was killed, or is stopped) makes its names unusable: what has to
be stored under such a name gets another one, which etcd names as well ("again"), so that the late deletion
hits nothing.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from remuda.etcd.v1 import etcd_pb2
from remuda.store.v1 import gc_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.cache import PrefixCache, Snapshot
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.etcd.model import KeyValue

from remuda_image_store.blobs import Blobs

# A process that stood still for so long in front of a deletion does not come back.
_DOOM_SECONDS = 7 * 24 * 3600.0
_CATCH_UP_SECONDS = 10.0

BlobEntry: TypeAlias = "gc_pb2.DoomRecord | str"


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """As they stood at `revision`."""

    revision: int
    doomed: Set[str] = frozenset()
    """Not to be relied on."""
    again: Mapping[str, str]
    """Name by content -> name of the blob that holds it instead."""
    last_dooms: Mapping[str, int]
    """Shard -> revision at which something in it was doomed last."""

    def shards_since(self, revision: int) -> set[str]:
        """Where something was doomed after `revision`, lifted or not."""
        return {shard for shard, last in self.last_dooms.items() if last > revision}


NOTHING = Names(revision=0, again={}, last_dooms={})


class View(Protocol):
    """What is known about names without asking etcd."""

    def now(self) -> Names: ...
    async def reach(self, revision: int) -> None: ...
    async def use_again(self, name: str, instead: str) -> None: ...
    async def look_up(self, name: str) -> str | None: ...


class Plain:
    """Where nothing is ever removed."""

    def now(self) -> Names:
        return NOTHING

    async def reach(self, revision: int) -> None:
        return

    async def use_again(self, name: str, instead: str) -> None:
        raise RemudaError(Reason.INTERNAL, f"{name} cannot get another name here")

    async def look_up(self, name: str) -> str | None:
        return None


class BlobNames:
    """Names in etcd, followed by `cache` (of the prefix keys.blob_names, decoded with `decode`)."""

    def __init__(self, etcd: Etcd, keys: Keys, cache: PrefixCache[BlobEntry]) -> None:
        self._etcd = etcd
        self._keys = keys
        self._cache = cache
        self._seen: Snapshot[BlobEntry] | None = None
        self._names = NOTHING

    def now(self) -> Names:
        """May be late: `read` is not."""
        snapshot = self._cache.snapshot()
        if snapshot is not self._seen:
            entries = [(entry.key, entry.value, entry.mod_revision) for entry in snapshot.items()]
            self._seen, self._names = snapshot, _names(self._keys, entries, snapshot.revision)
        return self._names

    async def reach(self, revision: int) -> None:
        """`now` is not older than `revision` from here on. Raises Unavailable."""
        await self._cache.wait_revision(revision, _CATCH_UP_SECONDS)

    async def look_up(self, name: str) -> str | None:
        """What is used instead of `name`, as etcd says now."""
        kv = await self._etcd.get(self._keys.again(name))
        return None if kv is None else kv.value.decode()

    async def use_again(self, name: str, instead: str) -> None:
        """`instead` is in the backend. Here at least it is known afterwards."""
        await self.reach(await self._etcd.put(self._keys.again(name), instead.encode()))


async def read_names(etcd: Etcd, keys: Keys, *, but: str = "") -> Names:
    """As they are now; `but`: key of a doom that does not count."""
    found: list[tuple[str, BlobEntry, int]] = []
    revision = 0
    async for page in etcd.pages(keys.blob_names):
        revision = page.revision
        found += [(kv.key, decode(kv, keys), kv.mod_revision) for kv in page.kvs if kv.key != but]
    return _names(keys, found, revision)


def nothing_doomed_since(keys: Keys, revision: int) -> ops.Compare:
    """Holds as long as no doom was written after `revision`, even if it was lifted."""
    compare = ops.mod_is(keys.last_dooms, 0)
    compare.range_end = ops.prefix_end(keys.last_dooms)
    compare.result = etcd_pb2.Compare.COMPARE_RESULT_LESS
    compare.mod_revision = revision + 1
    return compare


async def remove_blobs(
    etcd: Etcd,
    keys: Keys,
    blobs: Blobs,
    names: Sequence[str],
    still_free: Callable[[Names], Awaitable[Collection[str]]],
    *,
    fence: Sequence[ops.Compare] = (),
) -> list[str]:
    """Removes those of `names` that are free; which ones these were.

    `still_free` is asked once they are doomed, with what others have doomed; what refers to blobs it has to
    read anew. Raises STORE_UNAVAILABLE when `fence` does not hold (any more).
    """
    shards = {shard_of(name) for name in names}
    key = keys.doomed(str(uuid.uuid4()))
    record = gc_pb2.DoomRecord(names=names)
    record.time.GetCurrentTime()
    result = await etcd.txn(
        compare=[ops.absent(key), *fence],
        success=[
            ops.put(key, record.SerializeToString()),
            *(ops.put(keys.last_doom(shard), b"") for shard in sorted(shards)),
        ],
        witness=key,
    )
    if not result.succeeded:
        raise RemudaError(Reason.STORE_UNAVAILABLE, "the shard is somebody else's now", retry_after_seconds=1)
    try:
        seen = await read_names(etcd, keys, but=key)
        free = sorted({*names}.intersection(await still_free(seen)))
    except BaseException:
        # Nothing is on its way to the backend: the doom can go.
        await _to_end(etcd.delete(key))
        raise
    if free:
        # When this fails, or its answer is lost, a deletion may still happen: then the doom stays.
        await _to_end(_remove(etcd, keys, blobs, free, seen))
    await _to_end(etcd.delete(key))
    return free


async def _remove(etcd: Etcd, keys: Keys, blobs: Blobs, names: Sequence[str], seen: Names) -> None:
    await blobs.delete(names)
    gone = set(names)
    for name, instead in seen.again.items():
        if instead in gone:
            key = keys.again(name)
            await etcd.txn(compare=[ops.value_is(key, instead.encode())], success=[ops.delete(key)])


async def _to_end(work: Coroutine[Any, Any, object]) -> None:
    """Who is cancelled meanwhile waits for it: a doom that is not lifted lasts long."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        raise


async def lift_old(etcd: Etcd, keys: Keys, now: float) -> None:
    """Of writers that are not believed to come back; `now` in seconds since the epoch."""
    oldest = now - _DOOM_SECONDS
    async for page in etcd.pages(keys.all_doomed):
        for kv in page.kvs:
            if gc_pb2.DoomRecord.FromString(kv.value).time.ToSeconds() < oldest:
                await etcd.txn(compare=[ops.mod_is(kv.key, kv.mod_revision)], success=[ops.delete(kv.key)])


def decode(kv: KeyValue, keys: Keys) -> BlobEntry:
    if kv.key.startswith(keys.all_doomed):
        return gc_pb2.DoomRecord.FromString(kv.value)
    return kv.value.decode()


def shard_of(content: str | bytes) -> str:
    """Of a digest, or of a blob's name: the first byte of the digest, two hex digits."""
    return f"{content[0]:02x}" if isinstance(content, bytes) else content.split("/")[1]


def _names(keys: Keys, entries: Sequence[tuple[str, BlobEntry, int]], revision: int) -> Names:
    doomed: set[str] = set()
    again: dict[str, str] = {}
    last: dict[str, int] = {}
    for key, entry, changed in entries:
        if not isinstance(entry, str):
            doomed.update(entry.names)
        elif key.startswith(keys.all_again):
            again[key.removeprefix(keys.all_again)] = entry
        else:
            last[key.removeprefix(keys.last_dooms)] = changed
    return Names(revision=revision, doomed=doomed, again=again, last_dooms=last)

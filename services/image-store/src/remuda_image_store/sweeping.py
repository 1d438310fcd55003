"""Garbage collection: what nothing refers to goes, a grace after it was first found so.

A pass takes the shards that are due and that nobody holds, reads what is referred to, and looks through each
shard: marks, removes what is due (blob_names.py), writes down the marks for the next pass, which may be
another replica's. Parts of uploads that nobody goes on with, and temporary files, go along.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import islice

from remuda.store.v1 import gc_pb2
from remuda_core.errors import RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import EtcdError
from remuda_core.images.chunks import Digest
from remuda_core.telemetry.metrics import Metrics

from remuda_image_store.blob_names import Names, lift_old, read_names, remove_blobs
from remuda_image_store.content import CHUNKS, MANIFESTS, Content, chunk_key
from remuda_image_store.marking import Listed, Mark, Needed, chosen, content_name, judge, unneeded
from remuda_image_store.records import Records
from remuda_image_store.references import References, rounds
from remuda_image_store.shard_locks import Held, shard_locks

_log = logging.getLogger(__name__)

MARKS = "marks/"
# Doomed together; the lease is looked at between batches.
_BATCH = 64


class Sweeper:
    def __init__(
        self,
        etcd: Etcd,
        records: Records,
        content: Content,
        metrics: Metrics,
        *,
        holder: str,
        grace_seconds: float,
        every_seconds: float,
        on_lost: Callable[[Digest], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`on_lost`: told of chunks of ACTIVE images that are not in the backend."""
        self._etcd = etcd
        self._records = records
        self._content = content
        self._metrics = metrics
        self._holder = holder
        self._grace_seconds = grace_seconds
        self._every_seconds = every_seconds
        self._on_lost = on_lost
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled. Every replica runs it; the locks share out the work."""
        while True:
            # Not all at once, where many were started together.
            await asyncio.sleep(self._every_seconds * random.uniform(0.8, 1.2))
            try:
                await self.sweep()
            except (RemudaError, EtcdError, OSError) as error:
                self._metrics.gc_passes.labels("failed").inc()
                _log.warning("garbage collection stopped half-way: %s", error)

    async def sweep(self) -> None:
        """One pass over all shards that are due. Raises RemudaError, EtcdError, OSError."""
        await lift_old(self._etcd, self._records.keys, self._clock())
        await asyncio.to_thread(self._content.blobs.drop_temporary, self._grace_seconds)
        marked = 0
        for group in rounds(await self._records.all()):
            due = [shard for shard, record in (await self._shards(group)).items() if self._is_due(record)]
            if not due:
                continue
            async with self._locks(due) as held:
                marked += await self._round(held)
        self._metrics.gc_passes.labels("done").inc()
        self._metrics.gc_last_pass.set(self._clock())
        self._metrics.gc_marked.set(marked)

    def _locks(self, due: Sequence[str]) -> AbstractAsyncContextManager[Held]:
        return shard_locks(self._etcd, self._records.keys, due, self._holder)

    async def _shards(self, group: Collection[str]) -> dict[str, gc_pb2.ShardRecord]:
        keys = self._records.keys
        found = {
            kv.key.removeprefix(keys.gc_all_marks): gc_pb2.ShardRecord.FromString(kv.value)
            async for page in self._etcd.pages(keys.gc_all_marks)
            for kv in page.kvs
        }
        return {shard: found.get(shard, gc_pb2.ShardRecord()) for shard in group}

    def _is_due(self, record: gc_pb2.ShardRecord) -> bool:
        # Half of it: a pass that comes a little early is not to be left out.
        since = self._clock() - record.pass_time.ToNanoseconds() / 1e9
        return not 0 <= since < self._every_seconds / 2

    async def _round(self, held: Held) -> int:
        """How many blobs are marked afterwards."""
        if not held.shards:
            return 0
        references = References(self._records, self._content, held.shards)
        await references.refresh()
        await self._drop_orphans(references)
        names = await read_names(self._etcd, self._records.keys)
        # Read under the locks: the last holder's.
        records = await self._shards(sorted(held.shards))
        written: dict[str, gc_pb2.ShardRecord] = {}
        marked = 0
        for shard, record in records.items():
            written[shard], count = await self._shard(shard, record, references, names, held)
            marked += count
        await self._write(written, held)
        return marked

    async def _drop_orphans(self, references: References) -> None:
        for image in references.orphans:
            await self._content.delete_parts(image)

    async def _shard(
        self,
        shard: str,
        record: gc_pb2.ShardRecord,
        references: References,
        names: Names,
        held: Held,
    ) -> tuple[gc_pb2.ShardRecord, int]:
        listed = await self._list(shard)
        present = {blob.name for blob in listed}
        needed = references.needed(shard)
        self._look_for_lost(references.active(shard), present, names)
        marks = await self._marks(record)
        now = self._clock()
        verdict = judge(listed, unneeded(present, needed, names), marks, now=now, grace=self._grace_seconds)
        sizes = {blob.name: blob.size_bytes for blob in listed}
        gone: set[str] = set()
        for batch in _batches(verdict.due):
            held.check()
            removed = await self._remove(shard, batch, references, held)
            gone.update(removed)
            self._metrics.gc_removed_blobs.inc(len(removed))
            self._metrics.gc_removed_bytes.inc(sum(sizes[name] for name in removed))
        if gone:
            _log.info("garbage collection removed %d blobs of shard %s", len(gone), shard)
        kept = [mark for mark in verdict.marks if mark.name not in gone]
        # With the same marks as before the blob that holds them stays.
        same = kept == list(marks)
        after = gc_pb2.ShardRecord(marks=record.marks if same else await self._put_marks(shard, kept))
        after.pass_time.FromNanoseconds(int(now * 1e9))
        return after, len(kept)

    async def _remove(
        self, shard: str, batch: Sequence[str], references: References, held: Held
    ) -> list[str]:
        async def still_free(seen: Names) -> set[str]:
            await references.refresh()
            needed = references.needed(shard)
            present = await self._present(batch, needed, seen)
            return unneeded(present, needed, seen).intersection(batch)

        return await remove_blobs(
            self._etcd,
            self._records.keys,
            self._content.blobs,
            batch,
            still_free,
            fence=[held.fence(shard)],
        )

    async def _present(self, batch: Sequence[str], needed: Needed, seen: Names) -> set[str]:
        """The batch, and what stands beside it for the same content: that is to be there in its place."""
        beside: set[str] = set()
        for content in {content_name(name) for name in batch if needed.has(name)}:
            beside.update(name for name in (content, seen.again.get(content)) if name is not None)
        there = {name for name in beside.difference(batch) if await self._content.blobs.exists(name)}
        return there.union(batch)

    async def _list(self, shard: str) -> list[Listed]:
        return [
            Listed(name=blob.key, version=blob.version, size_bytes=blob.size_bytes)
            for kind in (CHUNKS, MANIFESTS)
            async for blob in self._content.blobs.list(f"{kind}{shard}")
        ]

    def _look_for_lost(self, active: Collection[Digest], present: set[str], names: Names) -> None:
        for digest in active:
            key = chunk_key(digest)
            if key not in present and chosen(key, present, names) is None:
                self._on_lost(digest)

    # --- marks ---

    async def _marks(self, record: gc_pb2.ShardRecord) -> list[Mark]:
        """None where they cannot be read: then a grace begins anew."""
        if not record.marks:
            return []
        try:
            stored = gc_pb2.ShardMarks.FromString(await self._content.blobs.get(record.marks))
        except (FileNotFoundError, ValueError) as error:
            _log.warning("%s is lost or damaged: %s", record.marks, error)
            return []
        return [
            Mark(name=mark.name, version=mark.version, since=mark.time.ToNanoseconds() / 1e9)
            for mark in stored.marks
        ]

    async def _put_marks(self, shard: str, marks: Sequence[Mark]) -> str:
        """The blob's name, empty for no marks."""
        if not marks:
            return ""
        stored = gc_pb2.ShardMarks()
        for mark in marks:
            entry = stored.marks.add(name=mark.name, version=mark.version)
            entry.time.FromNanoseconds(int(mark.since * 1e9))
        name = f"{MARKS}{shard}/{uuid.uuid4()}"
        await self._content.blobs.put(name, stored.SerializeToString())
        return name

    async def _write(self, records: dict[str, gc_pb2.ShardRecord], held: Held) -> None:
        keys = self._records.keys
        for batch in _batches(records):
            result = await self._etcd.txn(
                compare=[held.fence(shard) for shard in batch],
                success=[
                    ops.put(keys.gc_marks(shard), records[shard].SerializeToString()) for shard in batch
                ],
            )
            if not result.succeeded:
                return
        await self._drop_marks({record.marks for record in records.values()}, held)

    async def _drop_marks(self, used: set[str], held: Held) -> None:
        """Those of earlier passes, also of one that was killed before it wrote down where they are."""
        held.check()
        listed = [blob.key async for blob in self._content.blobs.list(MARKS.rstrip("/"))]
        await self._content.blobs.delete(
            name for name in listed if name not in used and name.split("/")[1] in held.shards
        )


def _batches(names: Collection[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(islice(rest, _BATCH)):
        yield batch

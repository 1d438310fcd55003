"""Reading, asking and sending, against a store in memory."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime

import pytest
from remuda.image.v1.source_pb2 import ImageSource, TransferCounts
from remuda_agent.snapshots.planning import Plan, Span, plan
from remuda_agent.snapshots.uploading import WINDOW, Transfer
from remuda_core.errors import Reason, RemudaError
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, chunk_digest

from tests.unit.agent_snapshots.stores import MemoryDisk, MemoryStore, manifest_of

NOW = datetime(2026, 1, 2, tzinfo=UTC)
CRASH = ImageSource.CONSISTENCY_CRASH


def noise(seed: int) -> bytes:
    return bytes([seed]) * (CHUNK_BYTES - 8) + seed.to_bytes(8, "big")


BASE = noise(1) + noise(2) + noise(3)


def transfer(
    planned: Plan,
    disk: MemoryDisk,
    store: MemoryStore,
    told: list[TransferCounts] | None = None,
    stop: asyncio.Event | None = None,
) -> Transfer:
    def tell(counts: TransferCounts) -> None:
        if told is not None:
            told.append(TransferCounts.FromString(counts.SerializeToString()))

    return Transfer(planned, disk, store, incremental=False, stop=stop or asyncio.Event(), on_progress=tell)


async def test_only_what_was_touched_is_read_and_only_what_lacks_is_sent() -> None:
    # Chunk 0 was written to, 1 was written with what chunk 2 holds too, 3 is zeros now, 4 never was anything.
    disk = MemoryDisk(content=noise(9) + noise(3) + noise(3) + bytes(CHUNK_BYTES) + bytes(1 << 20))
    base = manifest_of(BASE)
    store = MemoryStore(known=set(base.digests))
    touched = [Span(0, 1), Span(CHUNK_BYTES, 1), Span(3 * CHUNK_BYTES, 1)]
    told: list[TransferCounts] = []
    work = transfer(plan(disk.size_bytes, earlier=base, touched=touched), disk, store, told)
    manifest = await work.content()
    await work.commit(manifest, consistency=CRASH, time=NOW)
    assert disk.reads == [0, CHUNK_BYTES, 3 * CHUNK_BYTES]
    assert list(store.chunks) == [chunk_digest(noise(9))]
    assert store.content(BASE) == disk.content
    [done] = store.committed
    assert (done.consistency, done.time) == (CRASH, NOW)
    counts = work.counts
    assert counts.disk_bytes == len(disk.content)
    assert counts.touched_bytes == counts.read_bytes == 3 * CHUNK_BYTES
    assert counts.deduplicated_bytes == 2 * CHUNK_BYTES
    assert counts.sent_bytes == counts.stored_bytes == CHUNK_BYTES
    assert told[-1].read_bytes == 3 * CHUNK_BYTES
    assert [step.read_bytes for step in told] == sorted(step.read_bytes for step in told)


async def test_the_same_bytes_in_many_places_are_sent_once() -> None:
    disk = MemoryDisk(content=noise(7) * (2 * WINDOW + 1))
    store = MemoryStore()
    work = transfer(plan(disk.size_bytes, earlier=None, touched=[]), disk, store)
    await work.commit(await work.content(), consistency=CRASH, time=NOW)
    assert store.sent_bytes == CHUNK_BYTES
    assert store.content() == disk.content
    assert work.counts.deduplicated_bytes == 2 * WINDOW * CHUNK_BYTES
    assert len(disk.reads) == 2 * WINDOW + 1


async def test_what_the_store_does_not_know_after_all_is_read_from_the_disk() -> None:
    base = manifest_of(BASE)
    disk = MemoryDisk(content=BASE + noise(4))
    store = MemoryStore(known=set(base.digests[:1]))  # the grant does not let the others be named
    work = transfer(plan(disk.size_bytes, earlier=base, touched=[Span(3 * CHUNK_BYTES, 1)]), disk, store)
    await work.commit(await work.content(), consistency=CRASH, time=NOW)
    assert store.content(BASE[:CHUNK_BYTES]) == disk.content
    assert sorted(disk.reads) == [CHUNK_BYTES, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES]


async def test_an_image_that_stays_incomplete_is_an_error_in_the_end() -> None:
    class Forgetful(MemoryStore):
        async def commit(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            raise RemudaError(Reason.IMAGE_INCOMPLETE, "chunks lack")

    disk = MemoryDisk(content=BASE)
    work = transfer(plan(disk.size_bytes, earlier=None, touched=[]), disk, Forgetful())
    with pytest.raises(RemudaError) as refused:
        await work.commit(await work.content(), consistency=CRASH, time=NOW)
    assert refused.value.reason is Reason.IMAGE_INCOMPLETE


async def test_a_stop_is_heeded_before_the_next_chunk() -> None:
    stop = asyncio.Event()
    disk = MemoryDisk(content=os.urandom(CHUNK_BYTES) * 3 * WINDOW)

    class Stopping(MemoryStore):
        async def lacking(self, digests):  # type: ignore[no-untyped-def]
            stop.set()
            return await super().lacking(digests)

    work = transfer(plan(disk.size_bytes, earlier=None, touched=[]), disk, Stopping(), stop=stop)
    with pytest.raises(RemudaError) as stopped:
        await work.content()
    assert stopped.value.reason is Reason.CANCELLED
    assert len(disk.reads) < 3 * WINDOW


async def test_what_the_store_refuses_ends_the_reading() -> None:
    disk = MemoryDisk(content=noise(5) * 3)
    store = MemoryStore(failures=[RemudaError(Reason.DISK_FULL, "no room")])
    work = transfer(plan(disk.size_bytes, earlier=None, touched=[]), disk, store)
    with pytest.raises(RemudaError) as refused:
        await work.content()
    assert refused.value.reason is Reason.DISK_FULL


async def test_a_disk_that_was_not_touched_is_its_base_and_nothing_is_asked_or_read() -> None:
    disk = MemoryDisk(content=BASE + bytes(CHUNK_BYTES))
    base = manifest_of(BASE)
    store = MemoryStore(known=set(base.digests))
    work = transfer(plan(disk.size_bytes, earlier=base, touched=[]), disk, store)
    await work.commit(await work.content(), consistency=CRASH, time=NOW)
    assert disk.reads == []
    assert store.asked == []
    assert store.committed[-1].manifest.digests == (*base.digests, HOLE)

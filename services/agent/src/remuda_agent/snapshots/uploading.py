"""From a disk into the image store: every chunk is read once, hashed, asked for and sent if it lacks.

A few chunks at a time are in memory; while some are sent, the next are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import islice
from typing import Protocol

from remuda.image.v1.chunk_pb2 import CommitImageResponse
from remuda.image.v1.source_pb2 import ImageSource, TransferCounts
from remuda_core.errors import Reason, RemudaError
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest, chunk_digest, digest_of
from remuda_core.images.manifest import Manifest, chunk_length, serialize
from remuda_core.images.upload import Written

from remuda_agent.snapshots.planning import Plan

WINDOW = 8
"""Chunks that are read ahead, and as many that are being sent: 64 MiB in all."""
_COMMITS = 3


class Uploader(Protocol):
    """`remuda_core.images.upload.ChunkUploader`, for one image and grant."""

    async def lacking(self, digests: Sequence[Digest]) -> set[Digest]: ...

    async def write(self, chunks: Sequence[tuple[Digest, bytes]]) -> Written: ...

    async def commit(
        self,
        manifest: Manifest,
        *,
        consistency: ImageSource.Consistency.ValueType,
        counts: TransferCounts,
        snapshot_time: datetime,
    ) -> CommitImageResponse: ...


class PretendingUploader:
    """For the fake hypervisor without an image store: everything lacks, and arrives nowhere."""

    async def lacking(self, digests: Sequence[Digest]) -> set[Digest]:
        return set(digests)

    async def write(self, chunks: Sequence[tuple[Digest, bytes]]) -> Written:
        size = sum(len(data) for _, data in chunks)
        return Written(size, size)

    async def commit(
        self,
        manifest: Manifest,
        *,
        consistency: ImageSource.Consistency.ValueType,
        counts: TransferCounts,
        snapshot_time: datetime,
    ) -> CommitImageResponse:
        digest = digest_of(serialize(manifest))
        return CommitImageResponse(manifest_digest=digest.hex(), stored_bytes=counts.sent_bytes)


class Readable(Protocol):
    """A disk as of one moment."""

    @property
    def size_bytes(self) -> int: ...

    async def read(self, offset: int, length: int) -> bytes: ...


class Transfer:
    """One disk into one image. `counts` is what it took so far."""

    def __init__(
        self,
        plan: Plan,
        disk: Readable,
        uploader: Uploader,
        *,
        incremental: bool,
        stop: asyncio.Event,
        on_progress: Callable[[TransferCounts], None],
    ) -> None:
        self.counts = TransferCounts(
            disk_bytes=plan.virtual_bytes, touched_bytes=plan.read_bytes, incremental=incremental
        )
        self._plan = plan
        self._disk = disk
        self._uploader = uploader
        self._stop = stop
        self._on_progress = on_progress

    async def content(self) -> Manifest:
        """Read what the plan says and send what lacks. Raises CANCELLED between chunks, what the disk raises,
        and what the uploader raises.
        """
        digests = list(self._plan.settled)
        for index, digest in (await self._send(self._plan.reads)).items():
            digests[index] = digest
        return Manifest(virtual_bytes=self._plan.virtual_bytes, digests=tuple(digests))

    async def commit(
        self, manifest: Manifest, *, consistency: ImageSource.Consistency.ValueType, time: datetime
    ) -> CommitImageResponse:
        """Raises what the uploader raises.

        The store may lack what nobody had to read: the base image is gone or not ours to name any more, or an
        earlier snapshot was deleted. Then that is read from the disk after all, which holds the same.
        """
        for _ in range(_COMMITS - 1):
            try:
                return await self._commit(manifest, consistency, time)
            except RemudaError as error:
                if error.reason is not Reason.IMAGE_INCOMPLETE:
                    raise
            await self._send(await self._places(manifest))
        return await self._commit(manifest, consistency, time)

    async def _commit(
        self, manifest: Manifest, consistency: ImageSource.Consistency.ValueType, time: datetime
    ) -> CommitImageResponse:
        done = await self._uploader.commit(
            manifest, consistency=consistency, counts=self.counts, snapshot_time=time
        )
        self.counts.stored_bytes = done.stored_bytes
        return done

    async def _places(self, manifest: Manifest) -> tuple[int, ...]:
        """One chunk for every digest that lacks."""
        lacking = await self._uploader.lacking(list(manifest.lengths()))
        first = {digest: index for index, digest in reversed(list(enumerate(manifest.digests)))}
        return tuple(sorted(first[digest] for digest in lacking))

    async def _send(self, indices: Sequence[int]) -> dict[int, Digest]:
        digests: dict[int, Digest] = {}
        coming = iter(indices)
        reading = asyncio.create_task(self._read(tuple(islice(coming, WINDOW))))
        try:
            while window := await reading:
                reading = asyncio.create_task(self._read(tuple(islice(coming, WINDOW))))
                digests |= {index: digest for index, digest, _ in window}
                await self._send_lacking(window)
                self._on_progress(self.counts)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        return digests

    async def _read(self, indices: Sequence[int]) -> list[tuple[int, Digest, bytes]]:
        window = []
        for index in indices:
            if self._stop.is_set():
                raise RemudaError(Reason.CANCELLED, "the snapshot was asked to stop")
            length = chunk_length(self._plan.virtual_bytes, index)
            data = await self._disk.read(index * CHUNK_BYTES, length)
            # In a thread: it keeps a core busy.
            digest = await asyncio.to_thread(chunk_digest, data)
            self.counts.read_bytes += length
            window.append((index, digest, b"" if digest == HOLE else data))
            self._on_progress(self.counts)
        return window

    async def _send_lacking(self, window: Sequence[tuple[int, Digest, bytes]]) -> None:
        found = {digest: data for _, digest, data in window if digest != HOLE}
        lacking = await self._uploader.lacking(list(found)) if found else set()
        chunks = [(digest, data) for digest, data in found.items() if digest in lacking]
        if chunks:
            written = await self._uploader.write(chunks)
            self.counts.sent_bytes += written.sent_bytes
        read = sum(chunk_length(self._plan.virtual_bytes, index) for index, _, _ in window)
        self.counts.deduplicated_bytes += read - sum(len(data) for _, data in chunks)

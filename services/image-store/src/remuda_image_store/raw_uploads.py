"""Receiving a raw disk: cut into chunks as it arrives, stored once, so that any replica goes on with it.

Each chunk is digested, put, and its digest written to a ledger in the backend; then the record in etcd says
up to where the file is safe. Several chunks are on their way at once, and whatever is ready is committed
together. A broken stream has to send again less than that, at most the chunk that was not whole.
"""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from remuda.image.v1 import image_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest, chunk_digest
from remuda_core.images.manifest import Manifest, chunk_count, chunk_length

from remuda_image_store.content import Content
from remuda_image_store.inspection import HEAD_BYTES, check_raw
from remuda_image_store.records import Changed, Found, Records, UploadState
from remuda_image_store.uploads import check_place, check_segments, mismatch

# Each commit is a blob and a transaction, both on disk: a fast upload gathers many chunks for one.
_PAUSE_SECONDS = 0.25
_READ_AHEAD = 4


class RawReceiver:
    """One stream. Use with `async with`; `take` its frames, then `flush`."""

    def __init__(
        self, records: Records, content: Content, found: Found, state: UploadState, slots: asyncio.Semaphore
    ) -> None:
        """`slots`: one per chunk that is on its way, shared by all streams: it bounds their memory."""
        self._records = records
        self._content = content
        self._found = found
        self._state = state
        self._slots = slots
        self._segment = uuid.uuid4().hex[:16]
        self._begin = state.record.committed_bytes
        self._received = self._begin
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._digests: dict[int, Digest] = {}
        """By index: put, not committed yet."""
        self._failure: Exception | None = None
        self._ready = asyncio.Event()
        self._committing = asyncio.Lock()
        self._sha256 = hashlib.sha256()
        self._hashed: asyncio.Task[None] | None = None

    @property
    def committed_bytes(self) -> int:
        return self._state.record.committed_bytes

    @property
    def sha256(self) -> str:
        """Of the whole file, lower-case hex; empty when this stream did not bring all of it."""
        whole = self._begin == 0 and self.committed_bytes == self._file_bytes
        return self._sha256.hexdigest() if whole else ""

    @property
    def _file_bytes(self) -> int:
        return self._found.record.image.file_bytes

    async def __aenter__(self) -> Self:
        self._start(self._commit_all_along())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def take(self, frame: image_pb2.UploadImageRequest) -> None:
        """Raises UPLOAD_OFFSET_MISMATCH, INVALID_ARGUMENT beyond the announced size, Refused for the
        beginning of another format, and what an earlier chunk has failed with.
        """
        self._check()
        data = frame.data  # Each look at this field copies it.
        check_place(
            frame.offset,
            len(data),
            expected=self._received,
            safe=self.committed_bytes,
            file_bytes=self._file_bytes,
        )
        if not data:
            return
        self._pieces.append(data)
        self._gathered += len(data)
        self._received += len(data)
        while self._gathered >= CHUNK_BYTES:
            await self._cut()
        if self._received == self._file_bytes and self._gathered:
            await self._cut()

    async def flush(self) -> None:
        """Every whole chunk taken so far is safe afterwards, the end of the file too. Raises as `take`."""
        while pending := {task for task in self._tasks if task.get_name() == _CHUNK}:
            await asyncio.wait(pending)
        self._check()
        await self._commit()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _start(self, work: "asyncio._CoroutineLike[None]", name: str = "") -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _cut(self) -> None:
        joined = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        data, rest = (joined, b"") if len(joined) <= CHUNK_BYTES else _split(joined)
        self._pieces, self._gathered = ([rest] if rest else []), len(rest)
        index = (self._received - len(rest) - 1) // CHUNK_BYTES
        if index == 0:
            # Before anything of it is stored: a guest would see another format's headers as its disk.
            check_raw(data[:HEAD_BYTES], self._file_bytes)
        await self._slots.acquire()
        before = self._hashed
        self._hashed = self._start(self._hash(data, before)) if self._begin == 0 else None
        self._start(self._keep(index, data, self._hashed), _CHUNK)

    async def _hash(self, data: bytes, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        await asyncio.to_thread(self._sha256.update, data)

    async def _keep(self, index: int, data: bytes, hashed: asyncio.Task[None] | None) -> None:
        try:
            digest = await asyncio.to_thread(chunk_digest, data)
            if digest != HOLE:
                await self._content.put_chunk(digest, data)
            self._digests[index] = digest
            self._ready.set()
            if hashed is not None:
                await hashed
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self._slots.release()

    async def _commit_all_along(self) -> None:
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                await self._commit()
                await asyncio.sleep(_PAUSE_SECONDS)
        except Exception as error:
            self._failure = self._failure or error

    async def _commit(self) -> None:
        """What follows without a gap on what is committed. Raises UPLOAD_OFFSET_MISMATCH, DISK_FULL."""
        async with self._committing:
            # One that failed before has taken digests with it: there is a gap from then on.
            self._check()
            offset, digests = self.committed_bytes, list[Digest]()
            first = offset // CHUNK_BYTES
            while (digest := self._digests.pop(first + len(digests), None)) is not None:
                digests.append(digest)
            try:
                if digests:
                    await self._record(offset, digests)
            except Exception as error:
                self._failure = error
                raise

    async def _record(self, offset: int, digests: Sequence[Digest]) -> None:
        check_segments(self._state, self._segment)
        await self._content.put_ledger(self._found.id, self._segment, offset, digests)
        try:
            self._state = await self._records.advance(
                self._found,
                self._state,
                segment=self._segment,
                offset=self._begin,
                committed=min(self._file_bytes, offset + len(digests) * CHUNK_BYTES),
            )
        except Changed as error:
            # If the image was removed in between, nobody else would look for this ledger.
            await self._content.delete_ledger(self._found.id, self._segment, offset)
            raise mismatch(
                "another stream goes on with this upload, or the image has changed", offset
            ) from error


_CHUNK = "chunk of an upload"


def _split(data: bytes) -> tuple[bytes, bytes]:
    return data[:CHUNK_BYTES], data[CHUNK_BYTES:]


async def received(content: Content, upload: store_pb2.UploadRecord, file_bytes: int) -> Manifest:
    """The disk that a complete upload has brought. Raises DIGEST_MISMATCH when a ledger is missing."""
    image = ImageId(upload.image_id)
    digests: list[Digest] = []
    ends = [segment.offset for segment in upload.segments[1:]] + [upload.committed_bytes]
    for segment, end in zip(upload.segments, ends, strict=True):
        upto = chunk_count(end)
        for offset, ledger in await content.ledgers(image, segment.id):
            if offset >= end:
                # Put, and never recorded.
                break
            if offset != len(digests) * CHUNK_BYTES:
                break
            # One that was recorded whole may have been gone back into: see Records.rewind.
            digests += ledger[: upto - len(digests)]
        if len(digests) != upto:
            raise RemudaError(
                Reason.DIGEST_MISMATCH,
                f"upload of {image}: the ledger at {len(digests) * CHUNK_BYTES} is lost or damaged",
            )
    return Manifest(virtual_bytes=file_bytes, digests=tuple(digests))


async def sha256_of(content: Content, manifest: Manifest) -> str:
    """Read back, verified. Raises DIGEST_MISMATCH."""
    sha256 = hashlib.sha256()
    async for data in plain_chunks(content, manifest, range(len(manifest.digests))):
        await asyncio.to_thread(sha256.update, data)
    return sha256.hexdigest()


async def plain_chunks(content: Content, manifest: Manifest, indices: Sequence[int]) -> AsyncIterator[bytes]:
    """Chunks of the disk in the order asked, zeros as bytes, verified, a few of them fetched ahead."""
    waiting = iter(indices)
    ahead: list[asyncio.Task[bytes]] = []

    def fetch_next() -> None:
        if (index := next(waiting, None)) is not None:
            ahead.append(asyncio.create_task(_plain(content, manifest, index)))

    try:
        for _ in range(_READ_AHEAD):
            fetch_next()
        while ahead:
            data = await ahead[0]
            del ahead[0]
            fetch_next()
            yield data
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


async def _plain(content: Content, manifest: Manifest, index: int) -> bytes:
    digest, length = manifest.digests[index], chunk_length(manifest.virtual_bytes, index)
    return bytes(length) if digest == HOLE else await content.chunk(digest, length)

"""Filling a new image from a host: only the chunks that the store asks for travel, each verified on arrival.

uploader = ChunkUploader([ChunkServiceStub(channel), ...], image_id=..., grant=...)
send = await uploader.lacking(digests)          # the others are in images that may be named
written = await uploader.write([(digest, data), ...])
answer = await uploader.commit(manifest, consistency=..., counts=...)

What `write` has returned for is safe: every replica knows it, also after the one that took it was killed.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import grpc
from remuda.image.v1 import chunk_pb2, source_pb2

from remuda_core.errors import Reason
from remuda_core.ids import ImageId
from remuda_core.images.chunks import HOLE, Digest, Stored, encode
from remuda_core.images.manifest import Manifest, serialize
from remuda_core.images.replicas import Patience, Replicas, Trouble, passing
from remuda_core.rpc.first_status import FirstStatus

if TYPE_CHECKING:
    from remuda.image.v1.chunk_pb2_grpc import ChunkServiceAsyncStub

T = TypeVar("T")
Chunk: TypeAlias = tuple[Digest, bytes]
"""The plain bytes, not all zero, with their digest."""

FIND_AT_ONCE = 4096
"""Digests in one question; the limit of the protocol."""
WRITE_AT_ONCE = 16
"""Chunks in one call: what a broken one has to send again, at most 64 MiB."""
_FRAME_BYTES = 1 << 20
# Encoded while those before them travel; so many more than the caller holds are in memory.
_ENCODED_AHEAD = 2
_STALL_SECONDS = 30.0
_TRIES = 8
# The store looks for every chunk before it answers.
_COMMIT_SECONDS = 300.0


class Written(NamedTuple):
    """Bytes of chunks as they were encoded."""

    sent_bytes: int
    """On the wire: what had to be sent twice counts twice."""
    stored_bytes: int
    """In the store, of each chunk once."""


class ChunkUploader:
    """One per image. Cancelling any of its calls is safe, and so is calling it again.

    Each raises RemudaError: STORE_UNAVAILABLE after `tries` failures in a row, GRANT_REFUSED, DISK_FULL,
    IMAGE_NOT_FOUND, STATE_FORBIDS_ACTION (somebody deletes the image), QUOTA_EXCEEDED.
    """

    def __init__(
        self,
        stores: Sequence["ChunkServiceAsyncStub"],
        *,
        image_id: ImageId,
        grant: chunk_pb2.SignedGrant,
        tries: int = _TRIES,
        stall_seconds: float = _STALL_SECONDS,
    ) -> None:
        """`stores` are replicas: any of them will do. `stall_seconds`: one that takes or answers nothing for
        so long is left for the next one.
        """
        self.grant = grant
        """May be replaced by a younger one."""
        self._replicas = Replicas(stores)
        self._image_id = image_id
        self._tries = tries
        self._stall_seconds = stall_seconds

    async def lacking(self, digests: Sequence[Digest]) -> set[Digest]:
        """Those that have to be written before the image is complete; never a chunk of zeros."""
        wanted = [digest for digest in dict.fromkeys(digests) if digest != HOLE]
        found: set[Digest] = set()
        for start in range(0, len(wanted), FIND_AT_ONCE):
            found.update(await self._find(wanted[start : start + FIND_AT_ONCE]))
        return found

    async def write(self, chunks: Sequence[Chunk]) -> Written:
        """They are safe when it returns. Raises DIGEST_MISMATCH when they keep arriving damaged."""
        sent, stored = 0, 0
        for start in range(0, len(chunks), WRITE_AT_ONCE):
            sending = _Sending(
                chunks[start : start + WRITE_AT_ONCE],
                chunk_pb2.WriteChunksRequest(grant=self.grant, image_id=self._image_id),
                stall_seconds=self._stall_seconds,
            )
            stored += (await self._persist(sending.run)).stored_bytes
            sent += sending.sent_bytes
        return Written(sent, stored)

    async def commit(
        self,
        manifest: Manifest,
        *,
        consistency: "source_pb2.ImageSource.Consistency.ValueType",
        counts: source_pb2.TransferCounts,
        snapshot_time: datetime | None = None,
    ) -> chunk_pb2.CommitImageResponse:
        """The image is ACTIVE. Raises IMAGE_INCOMPLETE: ask `lacking` again, write those, come back."""
        request = chunk_pb2.CommitImageRequest(
            grant=self.grant,
            image_id=self._image_id,
            manifest=await asyncio.to_thread(serialize, manifest),
            consistency=consistency,
            counts=counts,
        )
        if snapshot_time is not None:
            request.snapshot_time.FromDatetime(snapshot_time.astimezone(UTC))

        async def ask(store: "ChunkServiceAsyncStub") -> chunk_pb2.CommitImageResponse:
            return await store.CommitImage(request, timeout=_COMMIT_SECONDS)

        return await self._persist(ask)

    async def _find(self, digests: Sequence[Digest]) -> Iterable[Digest]:
        request = chunk_pb2.FindChunksRequest(grant=self.grant, image_id=self._image_id, digests=digests)

        async def ask(store: "ChunkServiceAsyncStub") -> chunk_pb2.FindChunksResponse:
            return await store.FindChunks(request, timeout=self._stall_seconds)

        return map(Digest, (await self._persist(ask)).lacking)

    async def _persist(self, attempt: Callable[["ChunkServiceAsyncStub"], Awaitable[T]]) -> T:
        patience = Patience(self._replicas, f"image {self._image_id} cannot be filled", tries=self._tries)
        while True:
            try:
                return await attempt(self._replicas.current())
            except TimeoutError:
                await patience.failed(Trouble(Reason.STORE_UNAVAILABLE, "nothing moved for too long"))
            except grpc.aio.AioRpcError as error:
                await patience.failed(passing(error))


class _Sending:
    """A few chunks on their way, however many tries that takes."""

    def __init__(
        self, chunks: Sequence[Chunk], head: chunk_pb2.WriteChunksRequest, *, stall_seconds: float
    ) -> None:
        """`head`: what only the first frame says."""
        self._chunks = chunks
        self._head = head
        self._stall_seconds = stall_seconds
        self.sent_bytes = 0

    async def run(self, store: "ChunkServiceAsyncStub") -> chunk_pb2.WriteChunksResponse:
        """One try. Raises TimeoutError, AioRpcError."""
        call = store.WriteChunks()
        first = FirstStatus(call)
        try:
            # Refused half-way, a call takes no more frames: its answer says why.
            with contextlib.suppress(asyncio.InvalidStateError):
                await self._send(call)
            async with asyncio.timeout(self._stall_seconds):
                return await call
        except grpc.aio.AioRpcError as error:
            raise (await first.real(error)) from error
        finally:
            call.cancel()

    async def _send(
        self, call: "grpc.aio.StreamUnaryCall[chunk_pb2.WriteChunksRequest, chunk_pb2.WriteChunksResponse]"
    ) -> None:
        first = True
        async with aclosing(_encoded(self._chunks)) as encoded:
            async for digest, stored, plain_bytes in encoded:
                for frame in _frames(digest, stored, plain_bytes):
                    if first:
                        frame.MergeFrom(self._head)
                        first = False
                    async with asyncio.timeout(self._stall_seconds):
                        await call.write(frame)
                    self.sent_bytes += len(frame.data)
        async with asyncio.timeout(self._stall_seconds):
            await call.done_writing()


async def _encoded(chunks: Sequence[Chunk]) -> AsyncGenerator[tuple[Digest, Stored, int], None]:
    """With the length of the plain bytes; the next ones are encoded while one is used."""
    ahead: deque[tuple[Digest, asyncio.Task[Stored], int]] = deque()
    coming = iter(chunks)
    try:
        while True:
            for digest, data in islice(coming, _ENCODED_AHEAD - len(ahead)):
                ahead.append((digest, asyncio.create_task(asyncio.to_thread(encode, data)), len(data)))
            if not ahead:
                return
            digest, task, plain_bytes = ahead.popleft()
            yield digest, await task, plain_bytes
    finally:
        for _, task, _ in ahead:
            task.cancel()


def _frames(digest: Digest, stored: Stored, plain_bytes: int) -> Iterator[chunk_pb2.WriteChunksRequest]:
    for at in range(0, len(stored.data), _FRAME_BYTES):
        yield chunk_pb2.WriteChunksRequest(
            digest=digest,
            data=stored.data[at : at + _FRAME_BYTES],
            last=at + _FRAME_BYTES >= len(stored.data),
            encoding=chunk_pb2.ReadChunksResponse.Encoding.ValueType(stored.encoding),
            plain_bytes=plain_bytes,
        )

"""WriteChunks: frames become chunks, each verified before it is stored, several at a time.

Nothing that a caller says decides how much memory is taken: a chunk is at most CHUNK_BYTES, whatever its
frames, its zstd header or its length announce.

A chunk is stored, counted and read as this store encodes it, not as it came: how it is read later would
otherwise tell whether somebody else had brought it first.
"""

import asyncio
from collections.abc import Mapping

from remuda.image.v1 import chunk_pb2
from remuda_core.errors import Reason, RemudaError, invalid_argument
from remuda_core.images.chunks import DamagedChunk, Digest, Encoding, Stored, decode, encode, is_zero

from remuda_image_store.content import Content
from remuda_image_store.ledger import Brought

MOST_CHUNKS = 64
"""In one call."""
_MOST_FRAMES = 16
# Verified and stored at a time, of one call.
_AT_ONCE = 4


class Intake:
    """The chunks of one call. `take` its frames, then `finish`; `abort` in any case.

    Raises RemudaError: INVALID_ARGUMENT, DIGEST_MISMATCH, QUOTA_EXCEEDED, DISK_FULL, STORE_UNAVAILABLE.
    """

    def __init__(
        self, content: Content, before: Mapping[Digest, Brought], *, byte_limit: int, most_chunks: int
    ) -> None:
        """`before`: what was brought for this image. `byte_limit`, `most_chunks`: with these together."""
        self._content = content
        self._before = before
        self._byte_limit = byte_limit
        self._most_chunks = most_chunks
        self._bytes = sum(chunk.stored_bytes for chunk in before.values())
        self._data = bytearray()
        self._frames = 0
        self._head: chunk_pb2.WriteChunksRequest | None = None
        self._begun = 0
        self._taken: dict[Digest, Brought] = {}
        self._working: set[asyncio.Task[None]] = set()

    async def take(self, frame: chunk_pb2.WriteChunksRequest) -> None:
        head = self._head = self._head or frame
        if _chunk_of(frame) != _chunk_of(head):
            raise invalid_argument("digest", "a chunk begins before the one in front of it has ended")
        self._frames += 1
        if not frame.data or self._frames > _MOST_FRAMES:
            raise invalid_argument("data", f"a chunk comes in 1 to {_MOST_FRAMES} frames that are not empty")
        self._data += frame.data
        # Packed only where that saves something: whoever reads it counts on that.
        if len(self._data) > head.plain_bytes:
            raise invalid_argument("data", "a chunk takes no more bytes encoded than plain")
        if frame.last:
            await self._chunk(head, bytes(self._data))
            self._data, self._frames, self._head = bytearray(), 0, None

    async def finish(self) -> list[Brought]:
        """All chunks, which are stored now."""
        if self._head is not None:
            raise invalid_argument("last", "the stream ended inside a chunk")
        while self._working:
            await self._wait()
        return list(self._taken.values())

    async def abort(self) -> None:
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def _chunk(self, head: chunk_pb2.WriteChunksRequest, data: bytes) -> None:
        digest = Digest(head.digest)
        if self._begun >= MOST_CHUNKS:
            raise invalid_argument("digest", f"more than {MOST_CHUNKS} chunks in one call")
        self._begun += 1
        while len(self._working) >= _AT_ONCE:
            await self._wait()
        came = Stored(encoding=Encoding(head.encoding), data=data)
        self._working.add(asyncio.create_task(self._store(digest, came, head.plain_bytes)))

    async def _store(self, digest: Digest, came: Stored, plain_bytes: int) -> None:
        stored = await asyncio.to_thread(_ours, digest, came, plain_bytes)
        self._admit(Brought(digest, len(stored.data), plain_bytes))
        await self._content.put_sent(digest, stored)

    def _admit(self, chunk: Brought) -> None:
        if chunk.digest not in self._before and chunk.digest not in self._taken:
            self._bytes += chunk.stored_bytes
            if self._bytes > self._byte_limit:
                raise over_limit(self._byte_limit)
            if len(self._before) + len(self._taken) >= self._most_chunks:
                raise invalid_argument("digest", f"more than {self._most_chunks} chunks for one image")
        self._taken[chunk.digest] = chunk

    async def _wait(self) -> None:
        done, self._working = await asyncio.wait(self._working, return_when=asyncio.FIRST_COMPLETED)
        failed = [error for task in done if (error := task.exception()) is not None]
        if failed:
            raise failed[0]


def _ours(digest: Digest, came: Stored, plain_bytes: int) -> Stored:
    """Verified. Raises DIGEST_MISMATCH, INVALID_ARGUMENT."""
    try:
        data = decode(came, digest, plain_bytes)
    except DamagedChunk as error:
        raise RemudaError(Reason.DIGEST_MISMATCH, str(error)) from error
    if is_zero(data):
        raise invalid_argument("digest", "a chunk of zeros has no digest and is not sent")
    return encode(data)


def _chunk_of(frame: chunk_pb2.WriteChunksRequest) -> tuple[bytes, int, int]:
    return frame.digest, frame.encoding, frame.plain_bytes


def over_limit(byte_limit: int) -> RemudaError:
    return RemudaError(
        Reason.QUOTA_EXCEEDED,
        f"the image may add {byte_limit} bytes to the store, and would add more",
        metadata={"limit": "byte_limit", "allowed": str(byte_limit)},
    )

"""RepairChunks: sound bytes of damaged chunks, out of a host's cache."""

import asyncio
from collections.abc import AsyncIterator, Mapping

from remuda.image.v1 import chunk_pb2
from remuda_core.errors import Reason, RemudaError, invalid_argument
from remuda_core.images.chunks import (
    CHUNK_BYTES,
    DamagedChunk,
    Digest,
    Encoding,
    Stored,
    decode,
    encode,
)

from remuda_image_store.damage import Damage

_MOST_CHUNKS = 64
_MOST_FRAMES = 16


async def repair(
    damage: Damage,
    lengths: Mapping[Digest, int],
    first: chunk_pb2.RepairChunksRequest,
    frames: AsyncIterator[chunk_pb2.RepairChunksRequest],
) -> int:
    """How many are sound again. `lengths`: the chunks of the image that the caller may read.

    What is not damaged is left as it is: a host cannot replace what it was not asked for. Raises
    INVALID_ARGUMENT, DIGEST_MISMATCH, DISK_FULL, STORE_UNAVAILABLE.
    """
    repaired = chunks = 0
    async for digest, stored in _chunks(first, frames):
        chunks += 1
        if chunks > _MOST_CHUNKS:
            raise invalid_argument("digest", f"more than {_MOST_CHUNKS} chunks in one call")
        length = lengths.get(digest)
        if length is None:
            raise invalid_argument("digest", "not a chunk of this image")
        ours = await asyncio.to_thread(_ours, stored, digest, length)
        if await damage.is_recorded(digest):
            repaired += await damage.repair(digest, ours)
    return repaired


async def _chunks(
    first: chunk_pb2.RepairChunksRequest, frames: AsyncIterator[chunk_pb2.RepairChunksRequest]
) -> AsyncIterator[tuple[Digest, Stored]]:
    """Put together; nothing that a caller says decides how much memory that takes."""
    data, count, head = bytearray(), 0, first
    frame: chunk_pb2.RepairChunksRequest | None = first
    while frame is not None:
        count += 1
        if (frame.digest, frame.encoding) != (head.digest, head.encoding):
            raise invalid_argument("digest", "a chunk begins before the one in front of it has ended")
        data += frame.data
        if count > _MOST_FRAMES or len(data) > CHUNK_BYTES:
            raise invalid_argument("data", "a chunk comes in a few frames of together 4 MiB at most")
        last = frame.last
        if last:
            yield Digest(head.digest), Stored(encoding=Encoding(head.encoding), data=bytes(data))
        frame = await anext(frames, None)
        if last and frame is not None:
            data, count, head = bytearray(), 0, frame
        elif not last and frame is None:
            raise invalid_argument("last", "the stream ended inside a chunk")


def _ours(stored: Stored, digest: Digest, length: int) -> Stored:
    """As this store encodes it."""
    try:
        data = decode(stored, digest, length)
    except DamagedChunk as error:
        raise RemudaError(Reason.DIGEST_MISMATCH, str(error)) from error
    return encode(data)

"""A virtual disk as frames: data in frames of a mebibyte, zeros as one number."""

from collections.abc import AsyncIterator

from remuda.image.v1 import image_pb2
from remuda_core.errors import invalid_argument
from remuda_core.images.chunks import CHUNK_BYTES, HOLE
from remuda_core.images.manifest import Manifest

from remuda_image_store.content import Content

FRAME_BYTES = 1 << 20


async def frames(
    manifest: Manifest, content: Content, start: int
) -> AsyncIterator[image_pb2.DownloadImageResponse]:
    """From byte `start` of the virtual disk on. Every chunk is verified before a byte of it is sent."""
    total = manifest.virtual_bytes
    if start > total:
        raise invalid_argument("offset", f"the disk has {total} bytes")
    for offset, length, digest in manifest.extents(start):
        if digest == HOLE:
            yield image_pb2.DownloadImageResponse(offset=offset, zero_bytes=length, total_bytes=total)
            continue
        index = offset // CHUNK_BYTES
        data = await content.chunk(digest, manifest.length(index))
        for at in range(offset - index * CHUNK_BYTES, len(data), FRAME_BYTES):
            yield image_pb2.DownloadImageResponse(
                offset=index * CHUNK_BYTES + at, data=data[at : at + FRAME_BYTES], total_bytes=total
            )

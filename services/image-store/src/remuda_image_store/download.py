"""A virtual disk as frames: data in frames of a mebibyte, zeros as one number; raw, or as a qcow2 file.

Chunks are fetched ahead of the frame that is sent, some at once, and verified before a byte of them goes.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

from remuda.image.v1 import image_pb2
from remuda_core.errors import invalid_argument
from remuda_core.images.chunks import HOLE
from remuda_core.images.manifest import Manifest

from remuda_image_store import qcow2
from remuda_image_store.content import Content
from remuda_image_store.pieces import Piece, raw_pieces

FRAME_BYTES = 1 << 20
# Chunks of 4 MiB on their way for one download: a backend that answers late is asked early.
_AHEAD = 4
# Field number and wire type: https://protobuf.dev/programming-guides/encoding/
_LENGTH_DELIMITED = 2
_DATA_TAG = bytes([image_pb2.DownloadImageResponse.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])


class Frame(NamedTuple):
    """A DownloadImageResponse."""

    serialized: bytes
    data_bytes: int
    """Of the disk in it, zeros not counted."""


async def frames(
    manifest: Manifest, content: Content, start: int, form: "image_pb2.Image.Format.ValueType"
) -> AsyncIterator[Frame]:
    """From byte `start` of the file on."""
    layout = qcow2.lay_out(manifest) if form == image_pb2.Image.FORMAT_QCOW2 else None
    total = manifest.virtual_bytes if layout is None else layout.file_bytes
    if start > total:
        raise invalid_argument("offset", f"the file has {total} bytes")
    pieces = raw_pieces(manifest, start) if layout is None else layout.pieces(start)
    async for piece, data in _fetched(pieces, content):
        if data is None:
            zeros = image_pb2.DownloadImageResponse(
                offset=piece.offset, zero_bytes=piece.length, total_bytes=total
            )
            yield Frame(zeros.SerializeToString(), 0)
            continue
        view = memoryview(data)[piece.skip : piece.skip + piece.length]
        for at in range(0, piece.length, FRAME_BYTES):
            yield data_frame(piece.offset + at, view[at : at + FRAME_BYTES], total)


def data_frame(offset: int, data: memoryview, total_bytes: int) -> Frame:
    """Put together here: a message copies the bytes when they come in, and again when it is serialized."""
    rest = image_pb2.DownloadImageResponse(offset=offset, total_bytes=total_bytes).SerializeToString()
    return Frame(b"".join((rest, _DATA_TAG, _varint(len(data)), data)), len(data))


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that another one follows."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


async def _fetched(pieces: Iterator[Piece], content: Content) -> AsyncIterator[tuple[Piece, bytes | None]]:
    """Each piece with the whole chunk or the data that it is of; None: zeros."""
    ahead: list[tuple[Piece, asyncio.Task[bytes] | bytes | None]] = []
    running = 0

    def fill() -> None:
        nonlocal running
        while running < _AHEAD and len(ahead) < 4 * _AHEAD and (piece := next(pieces, None)) is not None:
            if piece.digest == HOLE:
                ahead.append((piece, piece.data or None))
                continue
            running += 1
            ahead.append((piece, asyncio.create_task(content.chunk(piece.digest, piece.chunk_bytes))))

    try:
        while True:
            fill()
            if not ahead:
                return
            piece, work = ahead[0]
            data = await work if isinstance(work, asyncio.Task) else work
            del ahead[0]
            if isinstance(work, asyncio.Task):
                running -= 1
                fill()
            yield piece, data
    finally:
        tasks = [work for _, work in ahead if isinstance(work, asyncio.Task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

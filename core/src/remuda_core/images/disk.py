"""Raw disk files: reading their chunks without reading their holes, and writing them sparse. Blocking."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from remuda_core.images.chunks import CHUNK_BYTES
from remuda_core.images.manifest import chunk_count, chunk_length


def allocated_chunks(fd: int, virtual_bytes: int) -> Iterator[int]:
    """Indices, rising, of the chunks of a raw file that are not wholly a hole, as the file system tells.

    A file system that keeps no holes reports everything as data: then all indices come.
    """
    position, following = 0, 0
    while position < virtual_bytes:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= virtual_bytes:
            return
        position = min(os.lseek(fd, start, os.SEEK_HOLE), virtual_bytes)
        first = max(following, start // CHUNK_BYTES)
        following = chunk_count(position)
        yield from range(first, following)


def read_chunk(fd: int, virtual_bytes: int, index: int) -> bytes:
    """Shorter than the chunk where the file ends early."""
    return read_at(fd, index * CHUNK_BYTES, chunk_length(virtual_bytes, index))


def read_at(fd: int, offset: int, length: int) -> bytes:
    """Up to `length` bytes: fewer only at the end of the file."""
    pieces: list[bytes] = []
    while length > 0:
        piece = os.pread(fd, length, offset)
        if not piece:
            break
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def write_at(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable: a rename or a link is not before this."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

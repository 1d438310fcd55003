"""A disk as the file that a client receives: consecutive pieces, none of which has been read yet."""

from collections.abc import Iterator
from typing import NamedTuple

from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest
from remuda_core.images.manifest import Manifest


class Piece(NamedTuple):
    """A part of a chunk, or `data`, or zeros."""

    offset: int
    """In the file."""
    length: int
    digest: Digest = HOLE
    chunk_bytes: int = 0
    """Plain bytes of that chunk."""
    skip: int = 0
    """Bytes of the chunk, or of `data`, before the piece begins."""
    data: bytes = b""

    def after(self, start: int) -> "Piece":
        """What of it is not before byte `start` of the file, which lies inside it."""
        cut = max(0, start - self.offset)
        return self._replace(offset=self.offset + cut, length=self.length - cut, skip=self.skip + cut)


def raw_pieces(manifest: Manifest, start: int) -> Iterator[Piece]:
    """Of the file that is the virtual disk, from byte `start` on."""
    for offset, length, digest in manifest.extents(start):
        if digest == HOLE:
            yield Piece(offset, length)
        else:
            index = offset // CHUNK_BYTES
            yield Piece(offset, length, digest, manifest.length(index), offset - index * CHUNK_BYTES)

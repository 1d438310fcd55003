"""The manifest of an image: the ordered digests of the chunks of its virtual disk.

It is a blob named by its own digest, so the bytes must follow from the content: protobuf's deterministic
serialization of remuda.image.v1.Manifest, whose fields are scalars and bytes only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import DecodeError
from remuda.image.v1 import chunk_pb2

from remuda_core.images.chunks import CHUNK_BYTES, DIGEST_BYTES, HOLE, Digest, digest_of


class BadManifest(ValueError):
    """The bytes are no manifest, or not the one that was asked for."""


class Extent(NamedTuple):
    """Chunks next to each other that are all zero, or one chunk that is not."""

    offset: int
    length: int
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Raises BadManifest when the parts do not fit each other."""

    virtual_bytes: int
    digests: tuple[Digest, ...]
    """One per chunk, HOLE for zeros."""

    def __post_init__(self) -> None:
        if self.virtual_bytes <= 0:
            raise BadManifest(f"a virtual disk of {self.virtual_bytes} bytes")
        if len(self.digests) != chunk_count(self.virtual_bytes):
            raise BadManifest(f"{len(self.digests)} digests for a disk of {self.virtual_bytes} bytes")
        if any(len(digest) not in (0, DIGEST_BYTES) for digest in self.digests):
            raise BadManifest(f"a digest is not {DIGEST_BYTES} bytes long")

    def length(self, index: int) -> int:
        """Bytes of a chunk."""
        return chunk_length(self.virtual_bytes, index)

    def lengths(self) -> dict[Digest, int]:
        """Every distinct chunk that has bytes, with its length, in the order of first use."""
        return {digest: self.length(i) for i, digest in enumerate(self.digests) if digest != HOLE}

    def allocated_bytes(self) -> int:
        """Of a sparse file that holds this disk: every chunk that is not all zero, however often it comes."""
        return sum(self.length(i) for i, digest in enumerate(self.digests) if digest != HOLE)

    def extents(self, start: int = 0) -> Iterator[Extent]:
        """The disk from byte `start` on, zeros joined; the first may begin inside a chunk."""
        if not 0 <= start <= self.virtual_bytes:
            raise ValueError(f"{start} is not inside a disk of {self.virtual_bytes} bytes")
        hole = start
        if start == self.virtual_bytes:
            # The last chunk may be a short one, and hold this byte's number without holding the byte.
            return
        for index in range(start // CHUNK_BYTES, len(self.digests)):
            offset = max(start, index * CHUNK_BYTES)
            if self.digests[index] == HOLE:
                continue
            if offset > hole:
                yield Extent(hole, offset - hole, HOLE)
            hole = index * CHUNK_BYTES + self.length(index)
            yield Extent(offset, hole - offset, self.digests[index])
        if hole < self.virtual_bytes:
            yield Extent(hole, self.virtual_bytes - hole, HOLE)


def chunk_count(virtual_bytes: int) -> int:
    return -(-virtual_bytes // CHUNK_BYTES)


def chunk_length(virtual_bytes: int, index: int) -> int:
    return min(CHUNK_BYTES, virtual_bytes - index * CHUNK_BYTES)


def serialize(manifest: Manifest) -> bytes:
    message = chunk_pb2.Manifest(
        virtual_bytes=manifest.virtual_bytes, chunk_bytes=CHUNK_BYTES, digests=manifest.digests
    )
    return message.SerializeToString(deterministic=True)


def parse(blob: bytes, digest: Digest) -> Manifest:
    """Raises BadManifest unless the blob has this digest and is a manifest with chunks of CHUNK_BYTES."""
    if digest_of(blob) != digest:
        raise BadManifest(f"these {len(blob)} bytes are not manifest {digest.hex()}")
    try:
        message = chunk_pb2.Manifest.FromString(blob)
    except DecodeError as error:
        raise BadManifest(f"manifest {digest.hex()} cannot be parsed: {error}") from error
    if message.chunk_bytes != CHUNK_BYTES:
        raise BadManifest(f"manifest {digest.hex()} has chunks of {message.chunk_bytes} bytes")
    return build(message.virtual_bytes, message.digests)


def build(virtual_bytes: int, digests: Sequence[bytes]) -> Manifest:
    return Manifest(virtual_bytes=virtual_bytes, digests=tuple(Digest(digest) for digest in digests))

"""Which chunks an unfinished upload has brought: they count as referenced, as those of a manifest do.

Blobs under uploads/<image>/ledger/, of any names below it; each is the digests of some chunks one after
another, with the bytes that each takes encoded, and plain: 32, 4 and 4 bytes. The sizes are 0
where nobody needs them. A chunk of zeros, where the order counts, is 40 zero bytes: no chunk has that digest.
They go with the upload: when the image is ACTIVE, FAILED or removed.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId
from remuda_core.images.chunks import DIGEST_BYTES, HOLE, Digest

UPLOADS = "uploads/"
_ZERO = bytes(DIGEST_BYTES)
_ENTRY = struct.Struct(">32sII")


class Brought(NamedTuple):
    """One chunk as an agent has sent it."""

    digest: Digest
    stored_bytes: int
    """As the store encodes it now: the same whether or not it was there, perhaps encoded otherwise."""
    plain_bytes: int


def ledger_prefix(image: ImageId) -> str:
    """Every blob below it is a ledger."""
    return f"{UPLOADS}{image}/ledger/"


def segment_prefix(image: ImageId, segment: str) -> str:
    """Ledgers of one stream of a raw upload, each named by the offset of its first chunk."""
    return f"{ledger_prefix(image)}{segment}/"


def is_ledger(key: str) -> bool:
    """Of a blob under UPLOADS."""
    return key.startswith(UPLOADS) and key.split("/")[2:3] == ["ledger"]


def serialize(digests: Iterable[Digest]) -> bytes:
    return serialize_brought(Brought(digest, 0, 0) for digest in digests)


def parse(blob: bytes) -> list[Digest]:
    """In order, HOLE for zeros. Raises RemudaError DIGEST_MISMATCH for what is no ledger."""
    return [entry.digest for entry in parse_brought(blob)]


def serialize_brought(chunks: Iterable[Brought]) -> bytes:
    return b"".join(_ENTRY.pack(chunk.digest or _ZERO, *chunk[1:]) for chunk in chunks)


def parse_brought(blob: bytes) -> list[Brought]:
    """In order, HOLE for zeros. Raises RemudaError DIGEST_MISMATCH for what is no ledger."""
    if len(blob) % _ENTRY.size:
        raise RemudaError(Reason.DIGEST_MISMATCH, f"a ledger of {len(blob)} bytes")
    return [
        Brought(HOLE if digest == _ZERO else Digest(digest), stored, plain)
        for digest, stored, plain in _ENTRY.iter_unpack(blob)
    ]

"""Which chunks an unfinished upload has brought: they count as referenced, as those of a manifest do.

Blobs under uploads/<image>/ledger/, of any names below it; each is the digests of some chunks one after
another, 32 bytes each. A chunk of zeros, where the order counts, is 32 zero bytes: no chunk has that digest.
They go with the upload: when the image is ACTIVE, FAILED or removed.
"""

from collections.abc import Iterable

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId
from remuda_core.images.chunks import DIGEST_BYTES, HOLE, Digest

UPLOADS = "uploads/"
_ZERO = bytes(DIGEST_BYTES)


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
    return b"".join(digest or _ZERO for digest in digests)


def parse(blob: bytes) -> list[Digest]:
    """In order, HOLE for zeros. Raises RemudaError DIGEST_MISMATCH for what is no ledger."""
    if len(blob) % DIGEST_BYTES:
        raise RemudaError(Reason.DIGEST_MISMATCH, f"a ledger of {len(blob)} bytes")
    found = (blob[at : at + DIGEST_BYTES] for at in range(0, len(blob), DIGEST_BYTES))
    return [HOLE if digest == _ZERO else Digest(digest) for digest in found]

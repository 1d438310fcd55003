"""Digests of manifests as the protocol names them."""

from __future__ import annotations

from remuda_core.errors import Reason, RemudaError
from remuda_core.images.chunks import Digest


def parse_digest(text: str) -> Digest:
    """Lower-case hex of the protocol. Raises INVALID_ARGUMENT: it becomes part of a path."""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32 or text != digest.hex():
        raise RemudaError(Reason.INVALID_ARGUMENT, f"{text!r} is no BLAKE3 digest in lower-case hex")
    return Digest(digest)

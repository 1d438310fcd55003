"""The host's base images: `<pool>/base/<manifest digest>.raw`, read-only, shared by every overlay on it.

Fetched, kept and evicted: see remuda_agent.base_cache.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from remuda.compute.v1.operation_pb2 import Progress
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import OperationId
from remuda_core.images.base_file import base_path
from remuda_core.images.chunks import Digest

from remuda_agent.disks.pools import Pools


class PretendingBaseImages:
    """For the fake hypervisor: an empty file per image, fetched from nowhere."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    async def ensure(
        self,
        *,
        pool: str,
        image_id: str,
        manifest_digest: str,
        grant: SignedGrant,
        operation: OperationId,
        on_progress: Callable[[Progress], None],
    ) -> Path:
        """See the port."""
        path = base_path(self._pools.get(pool).bases, parse_digest(manifest_digest))
        path.touch()
        return path

    def laid(self, operation: OperationId) -> None:
        """Nothing evicts them in between: there is no cache to keep small."""


def parse_digest(text: str) -> Digest:
    """Lower-case hex of the protocol. Raises INVALID_ARGUMENT: it becomes part of a path."""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32 or text != digest.hex():
        raise RemudaError(Reason.INVALID_ARGUMENT, f"{text!r} is no BLAKE3 digest in lower-case hex")
    return Digest(digest)

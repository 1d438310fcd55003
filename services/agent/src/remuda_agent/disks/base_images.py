"""The host's base images: `<pool>/base/<manifest digest>.raw`, read-only, shared by every overlay on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import grpc
from remuda.compute.v1.operation_pb2 import Progress, TransferProgress
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId
from remuda_core.images.base_file import base_path
from remuda_core.images.chunks import Digest
from remuda_core.images.fetch import FetchProgress, ImageFetcher
from remuda_core.rpc.status import from_rpc_error

from remuda_agent.disks.base_turns import BaseTurns
from remuda_agent.disks.pools import Pools


class FetchedBaseImages:
    """Implements `remuda_agent.steps.ports.BaseImages` over the image store."""

    def __init__(self, pools: Pools, fetcher: ImageFetcher, turns: BaseTurns) -> None:
        self._pools = pools
        self._fetcher = fetcher
        self._turns = turns

    async def ensure(
        self,
        *,
        pool: str,
        image_id: str,
        manifest_digest: str,
        grant: SignedGrant,
        on_progress: Callable[[Progress], None],
    ) -> Path:
        """See the port. What other pools' bases hold already is copied, not fetched."""
        digest = parse_digest(manifest_digest)
        directory = self._pools.get(pool).bases
        async with self._turns.turn(base_path(directory, digest)):
            try:
                base = await self._fetcher.fetch(
                    image_id=ImageId(image_id),
                    manifest_digest=digest,
                    grant=grant,
                    directory=directory,
                    known=[other.bases for other in self._pools if other.bases != directory],
                    on_progress=lambda progress: on_progress(_told(progress)),
                )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
            # No overlay lies on it yet: that it was asked for now is what keeps the janitor off it.
            await asyncio.to_thread(os.utime, base)
            return base


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
        on_progress: Callable[[Progress], None],
    ) -> Path:
        """See the port."""
        path = base_path(self._pools.get(pool).bases, parse_digest(manifest_digest))
        path.touch()
        return path


def parse_digest(text: str) -> Digest:
    """Lower-case hex of the protocol. Raises INVALID_ARGUMENT: it becomes part of a path."""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32 or text != digest.hex():
        raise RemudaError(Reason.INVALID_ARGUMENT, f"{text!r} is no BLAKE3 digest in lower-case hex")
    return Digest(digest)


def _told(progress: FetchProgress) -> Progress:
    total, done = progress.total_bytes, progress.done_bytes
    return Progress(
        percent=100 * done // total if total else 0,
        message="fetching the base image",
        transfer=TransferProgress(done_bytes=done, total_bytes=total),
    )

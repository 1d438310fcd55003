"""OfferChunks: sound bytes of chunks that the image store has lost, out of a base image on this host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog
from remuda.agent.v1.agent_pb2 import OfferChunksRequest
from remuda.image.v1 import chunk_pb2
from remuda_core.errors import Reason
from remuda_core.images.base_file import base_path
from remuda_core.images.chunks import CHUNK_BYTES, Digest, Stored, digest_of, encode
from remuda_core.images.disk import read_chunk
from remuda_core.images.manifest import BadManifest, Manifest, parse
from remuda_core.images.replicas import Patience, Replicas, Trouble, passing
from remuda_core.images.threads import to_end
from remuda_core.rpc.first_status import FirstStatus

from remuda_agent.base_cache.promises import Promises
from remuda_agent.disks.base_turns import BaseTurns
from remuda_agent.disks.digests import parse_digest
from remuda_agent.disks.pools import Pools
from remuda_agent.leaders import LeaderGuard

if TYPE_CHECKING:
    from remuda.image.v1.chunk_pb2_grpc import ChunkServiceAsyncStub

_log = structlog.get_logger(__name__)

OFFERED_AT_ONCE = 8
"""Chunks in memory and in one call: 32 MiB."""
TRIES = 3
ANSWER_SECONDS = 60.0
_FRAME_BYTES = 1 << 20


class ChunkOffers:
    """Of one host. It reads a base like a guest does: the base stays as long."""

    def __init__(
        self,
        *,
        pools: Pools,
        turns: BaseTurns,
        promises: Promises,
        leaders: LeaderGuard,
        stores: Sequence[ChunkServiceAsyncStub],
    ) -> None:
        self._pools = pools
        self._turns = turns
        self._promises = promises
        self._leaders = leaders
        self._stores = tuple(stores)
        self._turn = asyncio.Semaphore(1)

    async def offer(self, request: OfferChunksRequest) -> int:
        """Chunks that the store says are sound again; 0: no base here has any of them undamaged.

        Raises STALE_LEADER, also in the middle, STORE_UNAVAILABLE, GRANT_REFUSED.
        """
        digest = parse_digest(request.manifest_digest)
        lacking = {Digest(one) for one in request.digests}
        repaired = 0
        if not self._stores:
            return 0
        # One after another: each holds a few chunks in memory.
        async with self._turn:
            for pool in self._pools:
                base = base_path(pool.bases, digest)
                with self._promises.holding(base):
                    if lacking and await self._is_there(base):
                        repaired += await self._offer_of(base, digest, request, lacking)
        return repaired

    async def _is_there(self, base: Path) -> bool:
        """Looked for in its turn, after it was held: it is not being evicted now, and will not be."""
        if not await asyncio.to_thread(base.exists):
            return False  # its turn may be a fetch's, and long
        async with self._turns.turn(base):
            return await asyncio.to_thread(base.exists)

    async def _offer_of(
        self, base: Path, digest: Digest, request: OfferChunksRequest, lacking: set[Digest]
    ) -> int:
        """Takes what is offered out of `lacking`."""
        repaired = 0
        with closing(_sound(base, digest, lacking)) as sound:
            while batch := await to_end(lambda: list(islice(sound, OFFERED_AT_ONCE))):
                self._leaders.check(request.leader)
                repaired += await self._send(request, batch)
                lacking.difference_update(one for one, _ in batch)
        return repaired

    async def _send(self, request: OfferChunksRequest, batch: Sequence[tuple[Digest, Stored]]) -> int:
        what = f"chunks of image {request.image_id} cannot be offered"
        replicas = Replicas(self._stores)
        patience = Patience(replicas, what, tries=max(TRIES, len(self._stores)))
        while True:
            call = replicas.current().RepairChunks(_frames(request, batch), timeout=ANSWER_SECONDS)
            first = FirstStatus(call)
            try:
                return (await call).repaired
            except grpc.aio.AioRpcError as error:
                await patience.failed(passing(await first.real(error)))
            except asyncio.InvalidStateError:  # grpc.aio: the call ended while it was written to
                await patience.failed(Trouble(Reason.STORE_UNAVAILABLE, "the call ended early"))


def _sound(base: Path, digest: Digest, wanted: set[Digest]) -> Generator[tuple[Digest, Stored], None, None]:
    """Chunks of a base that are what their digest says. Blocking."""
    manifest = _manifest(base, digest)
    if manifest is None:
        return
    left = set(wanted)
    fd = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for index, one in enumerate(manifest.digests):
            if one not in left:
                continue
            data = read_chunk(fd, manifest.virtual_bytes, index)
            if digest_of(data) == one:
                # The disk may have it in more places: any sound one will do.
                left.discard(one)
                yield one, encode(data)
            else:
                _log.error("a base image on this host is damaged", base=str(base), offset=index * CHUNK_BYTES)
    finally:
        os.close(fd)


def _manifest(base: Path, digest: Digest) -> Manifest | None:
    try:
        return parse(base.with_suffix(".manifest").read_bytes(), digest)
    except (BadManifest, OSError) as error:
        _log.warning("the manifest of a base image cannot be used", base=str(base), error=str(error))
        return None


async def _frames(
    request: OfferChunksRequest, batch: Sequence[tuple[Digest, Stored]]
) -> AsyncIterator[chunk_pb2.RepairChunksRequest]:
    head = chunk_pb2.RepairChunksRequest(grant=request.grant, image_id=request.image_id)
    for digest, stored in batch:
        for at in range(0, len(stored.data), _FRAME_BYTES):
            frame = chunk_pb2.RepairChunksRequest(
                digest=digest,
                data=stored.data[at : at + _FRAME_BYTES],
                last=at + _FRAME_BYTES >= len(stored.data),
                encoding=chunk_pb2.ReadChunksResponse.Encoding.ValueType(stored.encoding),
            )
            frame.MergeFrom(head)
            head.Clear()
            yield frame

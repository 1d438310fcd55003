"""Base images out of the image store: at hand when a step has asked for them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import grpc
from remuda.compute.v1.operation_pb2 import Progress, TransferProgress
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda_core.ids import ImageId, OperationId
from remuda_core.images.base_file import base_path
from remuda_core.images.chunks import Digest
from remuda_core.images.fetch import FetchProgress, ImageFetcher
from remuda_core.rpc.status import from_rpc_error
from remuda_core.telemetry.metrics import Metrics

from remuda_agent.base_cache.cache import BaseCache
from remuda_agent.base_cache.flights import Ask, Flights
from remuda_agent.base_cache.promises import Promises
from remuda_agent.disks.base_images import parse_digest
from remuda_agent.disks.base_turns import BaseTurns
from remuda_agent.disks.pools import Pool, Pools


class FetchedBaseImages:
    """Implements `remuda_agent.steps.ports.BaseImages` over the image store."""

    def __init__(
        self,
        *,
        pools: Pools,
        fetcher: ImageFetcher,
        turns: BaseTurns,
        cache: BaseCache,
        promises: Promises,
        metrics: Metrics,
    ) -> None:
        self._pools = pools
        self._fetcher = fetcher
        self._turns = turns
        self._cache = cache
        self._promises = promises
        self._metrics = metrics
        self._flights = Flights()

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
        """See the port. What other pools' bases hold already is copied, not fetched."""
        digest = parse_digest(manifest_digest)
        place = self._pools.get(pool)
        base = base_path(place.bases, digest)
        # Before it is looked for: see remuda_agent.base_cache.cache.
        self._promises.promise(base, operation)

        async def fetch(ask: Ask, tell: Callable[[Progress], None]) -> Path:
            async with self._turns.turn(base):
                return await self._fetch(place, digest, ask, tell)

        if self._flights.joinable(base):
            self._metrics.base_cache_hits.labels(pool=pool).inc()
        ask = Ask(image_id=ImageId(image_id), grant=grant, on_progress=on_progress)
        return await self._flights.join(base, ask, fetch)

    def laid(self, operation: OperationId) -> None:
        """See the port."""
        self._promises.fulfil(operation)

    async def _fetch(self, pool: Pool, digest: Digest, ask: Ask, tell: Callable[[Progress], None]) -> Path:
        base = base_path(pool.bases, digest)
        there = await asyncio.to_thread(base.exists)
        (self._metrics.base_cache_hits if there else self._metrics.base_cache_misses).labels(
            pool=pool.name
        ).inc()
        received = 0

        def note(progress: FetchProgress) -> None:
            nonlocal received
            fetched = self._metrics.base_cache_fetched_bytes.labels(pool=pool.name)
            fetched.inc(progress.received_bytes - received)
            received = progress.received_bytes
            tell(_told(progress))

        with self._cache.fetching(base):
            try:
                await self._fetcher.fetch(
                    image_id=ask.image_id,
                    manifest_digest=digest,
                    grant=ask.grant,
                    directory=pool.bases,
                    known=[other.bases for other in self._pools if other.bases != pool.bases],
                    on_progress=note,
                    on_manifest=lambda manifest: self._cache.make_room(
                        pool, base, manifest.allocated_bytes()
                    ),
                )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
        # No overlay lies on it yet: that it was asked for now is what keeps the janitor off it.
        await asyncio.to_thread(os.utime, base)
        return base


def _told(progress: FetchProgress) -> Progress:
    total, done = progress.total_bytes, progress.done_bytes
    return Progress(
        percent=100 * done // total if total else 0,
        message="fetching the base image",
        transfer=TransferProgress(done_bytes=done, total_bytes=total),
    )

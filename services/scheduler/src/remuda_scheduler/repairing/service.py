"""Follows image_damage/ and has hosts offer what they have, until the image store strikes the records off.

It keeps nothing that a successor would need: whoever leads next finds the records that are left.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from remuda.compute.v1.host_pb2 import Host
from remuda.image.v1.image_pb2 import Image
from remuda.store.v1.image_pb2 import DamageRecord, ImageRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd.cache import PrefixCache
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import EtcdError
from remuda_core.ids import HostId, ImageId, InstanceId, OperationId
from remuda_core.telemetry.metrics import Metrics

from remuda_scheduler.engine.fencing import FencedAgents
from remuda_scheduler.ports import Grants
from remuda_scheduler.repairing.backoff import Backoff
from remuda_scheduler.repairing.choosing import by_image, hosts_to_ask
from remuda_scheduler.store import StoreView

_log = structlog.get_logger(__name__)

OFFERED_AT_ONCE = 64
"""Chunks in one order: 256 MiB to read and send."""
GATHER_SECONDS = 0.5
"""After a change: a scrub that finds one damaged chunk finds more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    image: ImageId
    manifest_digest: str
    digests: Sequence[str]


class Repairer:
    """For one term."""

    def __init__(
        self,
        *,
        etcd: Etcd,
        store: StoreView,
        agents: FencedAgents,
        grants: Grants,
        metrics: Metrics,
        backoff: Backoff | None = None,
    ) -> None:
        self._etcd = etcd
        self._store = store
        self._agents = agents
        self._grants = grants
        self._metrics = metrics
        self._backoff = backoff or Backoff()

    @property
    def damaged(self) -> int:
        """Chunks that are damaged now."""
        return len(self._store.damage)

    async def run(self) -> None:
        """Until cancelled. Raises what ends a term: a cache that has failed."""
        changed = asyncio.Event()
        following = asyncio.create_task(_follow(self._store.damage, changed), name="damaged chunks")
        try:
            while True:
                changed.clear()
                await self._round()
                pause = self._backoff.pause(time.monotonic())
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await changed.wait()
                if following.done():
                    following.result()
                    raise RuntimeError("nobody follows the damaged chunks any more")
                await asyncio.sleep(GATHER_SECONDS)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _round(self) -> None:
        prefix = self._store.keys.all_image_damage
        records = {entry.key.removeprefix(prefix): entry.value for entry in self._store.damage.items()}
        due = self._backoff.due(records, time.monotonic())
        if not due:
            return
        rounds = min(self._backoff.rounds(one) for one in due)
        try:
            left = await self._repair({digest: records[digest] for digest in due}, rounds)
        except (RemudaError, EtcdError) as error:
            # This leader's word counts no more, or etcd is away: the records are still there afterwards.
            _log.info("damaged chunks are not repaired for now", error=str(error))
            left = set(due)
        for digest in due:
            self._backoff.tried(digest, time.monotonic())
        if left:
            _log.warning("chunks of images stay damaged", chunks=len(left), rounds=rounds + 1)

    async def _repair(self, records: dict[str, DamageRecord], rounds: int) -> set[str]:
        """What is left."""
        images_of = {digest: [ImageId(one) for one in record.image_ids] for digest, record in records.items()}
        images = self._images()
        left = set(records)
        for image, digests in by_image(images_of, images).items():
            wanted = [digest for digest in digests if digest in left]
            having = self._hosts_with(images[image])
            for host in hosts_to_ask(self._up(), having, rounds) if wanted else ():
                left -= await self._ask(
                    host,
                    _Wanted(
                        image=image,
                        manifest_digest=images[image],
                        digests=[digest for digest in wanted if digest in left],
                    ),
                )
                if not left.intersection(wanted):
                    break
        return left

    async def _ask(self, host: HostId, wanted: _Wanted) -> set[str]:
        """Those that are sound again. Raises STALE_LEADER, EtcdError."""
        gone: set[str] = set()
        for start in range(0, len(wanted.digests), OFFERED_AT_ONCE):
            batch = wanted.digests[start : start + OFFERED_AT_ONCE]
            # No operation of a client: the grant is told from others by an id of its own.
            operation = OperationId(str(uuid.uuid4()))
            try:
                repaired = await self._agents.offer_chunks(
                    host,
                    image=wanted.image,
                    manifest_digest=wanted.manifest_digest,
                    digests=[bytes.fromhex(digest) for digest in batch],
                    grant=self._grants.sign(host_id=host, operation_id=operation, images=[wanted.image]),
                )
            except RemudaError as error:
                if error.reason is Reason.STALE_LEADER:
                    raise
                _log.info("a host does not offer chunks", host=host, image=wanted.image, error=str(error))
                return gone
            if not repaired:
                return gone  # it has no such base, or none of these is sound there
            self._metrics.image_chunks_repaired.inc(repaired)
            _log.warning("damaged chunks are repaired", host=host, image=wanted.image, chunks=repaired)
            # The store's word, not the host's: whatever it has struck off is sound.
            for digest in batch:
                if await self._etcd.get(self._store.keys.image_damage(digest)) is None:
                    gone.add(digest)
        return gone

    def _images(self) -> dict[ImageId, str]:
        """ACTIVE ones, with their manifest's digest."""
        return {
            ImageId(entry.value.id): entry.value.image.manifest_digest
            for entry in self._store.images.items()
            if _readable(entry.value)
        }

    def _up(self) -> set[HostId]:
        prefix = self._store.keys.host_statuses
        return {
            HostId(entry.key.removeprefix(prefix))
            for entry in self._store.host_statuses.items()
            if entry.value.state == Host.STATE_UP
        }

    def _hosts_with(self, manifest_digest: str) -> set[HostId]:
        """Hosts of guests whose disks lie on that base."""
        found = set()
        for entry in self._store.instances.items():
            if entry.value.manifest_digest == manifest_digest:
                status = self._store.statuses.get(
                    self._store.keys.instance_status(InstanceId(entry.value.id))
                )
                if status is not None and status.value.host_id:
                    found.add(HostId(status.value.host_id))
        return found


def _readable(record: ImageRecord) -> bool:
    return record.image.state == Image.STATE_ACTIVE and bool(record.image.manifest_digest)


async def _follow(damage: PrefixCache[DamageRecord], changed: asyncio.Event) -> None:
    async with damage.subscribe() as changes:
        async for _ in changes:
            changed.set()

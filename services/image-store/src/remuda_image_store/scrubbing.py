"""Reading every stored chunk again, slowly, to find damage while somebody still has the bytes.

One replica does it, shard by shard; where it has come to is in etcd, for whoever goes on. Between rounds, and
twice a minute during one, it looks at the chunks that are written down as damaged.
"""

import asyncio
import logging
import time

from remuda.store.v1 import gc_pb2
from remuda_core.errors import RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.election import Election, Leadership
from remuda_core.etcd.errors import EtcdError
from remuda_core.telemetry.metrics import Metrics

from remuda_image_store.content import CHUNKS, Content
from remuda_image_store.damage import Damage, is_sound
from remuda_image_store.marking import SHARDS, parse_name
from remuda_image_store.records import Records

_log = logging.getLogger(__name__)

_TTL_SECONDS = 15
_RECHECK_SECONDS = 30.0
_AGAIN_SECONDS = 5.0


class Scrubber:
    def __init__(
        self,
        etcd: Etcd,
        records: Records,
        content: Content,
        damage: Damage,
        metrics: Metrics,
        *,
        holder: str,
        bytes_per_second: float,
        round_seconds: float,
    ) -> None:
        """`round_seconds`: from the beginning of one round to that of the next, if it is through by then."""
        self._etcd = etcd
        self._keys = records.keys
        self._blobs = content.blobs
        self._damage = damage
        self._metrics = metrics
        self._holder = holder
        self._bytes_per_second = bytes_per_second
        self._round_seconds = round_seconds
        self._rechecked = 0.0

    async def run(self) -> None:
        """Until cancelled. Every replica runs it; one of them has the turn."""
        while True:
            async with Election(
                self._etcd, self._keys.gc_scrub, self._holder.encode(), _TTL_SECONDS
            ) as election:
                await self._lead(await election.campaign())

    async def _lead(self, term: Leadership) -> None:
        while not term.lost.is_set():
            try:
                await self.step(term)
            except (RemudaError, EtcdError, OSError) as error:
                _log.warning("scrubbing goes on later: %s", error)
                await asyncio.sleep(_AGAIN_SECONDS)

    async def step(self, term: Leadership) -> None:
        """The next shard, or a wait of a few seconds where the next round is not due."""
        await self._recheck()
        kv = await self._etcd.get(self._keys.gc_scrubbed)
        record = gc_pb2.ScrubRecord() if kv is None else gc_pb2.ScrubRecord.FromString(kv.value)
        if record.next_shard == 0:
            wait = record.round_time.ToSeconds() + self._round_seconds - time.time()
            if wait > 0:
                await asyncio.sleep(min(wait, _AGAIN_SECONDS))
                return
            record.round_time.GetCurrentTime()
        await self._shard(SHARDS[record.next_shard])
        record.next_shard = (record.next_shard + 1) % len(SHARDS)
        # Only while it is its turn: a successor may have begun elsewhere.
        await term.txn(success=[ops.put(self._keys.gc_scrubbed, record.SerializeToString())])

    async def _shard(self, shard: str) -> None:
        names = [blob.key async for blob in self._blobs.list(f"{CHUNKS}{shard}")]
        for name in names:
            await self._recheck()
            _, digest = parse_name(name)
            if digest is None:
                continue
            try:
                blob = await self._blobs.get(name)
            except FileNotFoundError:
                continue
            if not await asyncio.to_thread(is_sound, blob, digest):
                self._damage.suspect(digest)
            self._metrics.scrubbed_bytes.inc(len(blob))
            await asyncio.sleep(len(blob) / self._bytes_per_second)

    async def _recheck(self) -> None:
        if time.monotonic() >= self._rechecked + min(_RECHECK_SECONDS, self._round_seconds):
            if recorded := await self._damage.recorded():
                await self._damage.look(recorded)
            self._rechecked = time.monotonic()

"""Chunks that are damaged or lost: found out, written down for the leader, and sound again.

    suspected -> read and verified -> image_damage/<digest> -> the damaged blob removed

in this order: whoever is killed half-way leaves a record that is looked at again. Afterwards the chunk is
simply lacking, so that any upload of the same content stores it again; the leader asks hosts for it
(RepairChunks). The record goes when the chunk is sound, or no ACTIVE image has it any more.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable

from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import EtcdError
from remuda_core.images.chunks import DamagedChunk, Digest, Stored, unpack, verify
from remuda_core.telemetry.metrics import Metrics

from remuda_image_store.blob_names import Names, read_names, remove_blobs
from remuda_image_store.content import Content, chunk_key
from remuda_image_store.records import Image, Records

_log = logging.getLogger(__name__)

_MOST_IMAGES = 32
# Reading all of a backend that fails would only make it worse; what is left out is found by the scrub.
_MOST_SUSPECTS = 4096
_AT_ONCE = 64
_AGAIN_SECONDS = 5.0


class Damage:
    def __init__(self, etcd: Etcd, records: Records, content: Content, metrics: Metrics) -> None:
        self._etcd = etcd
        self._records = records
        self._content = content
        self._metrics = metrics
        self._suspects: dict[Digest, None] = {}
        self._woken = asyncio.Event()

    def suspect(self, digest: Digest) -> None:
        """Somebody could not read it. Returns at once."""
        if len(self._suspects) < _MOST_SUSPECTS:
            self._suspects[digest] = None
            self._woken.set()

    async def run(self) -> None:
        """Until cancelled: looks at what is suspected."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._suspects:
                batch = list(self._suspects)[:_AT_ONCE]
                try:
                    await self.look(batch)
                except (RemudaError, EtcdError, OSError) as error:
                    _log.warning("damaged chunks are looked at later: %s", error)
                    await asyncio.sleep(_AGAIN_SECONDS)
                    continue
                for digest in batch:
                    self._suspects.pop(digest, None)

    async def recorded(self) -> list[Digest]:
        prefix = self._records.keys.all_image_damage
        return [
            Digest(bytes.fromhex(kv.key.removeprefix(prefix)))
            async for page in self._etcd.pages(prefix)
            for kv in page.kvs
        ]

    async def is_recorded(self, digest: Digest) -> bool:
        return await self._etcd.get(self._records.keys.image_damage(digest.hex())) is not None

    async def look(self, digests: Collection[Digest]) -> set[Digest]:
        """Those that are sound. The others are written down if an ACTIVE image has them.

        Raises RemudaError, EtcdError, OSError: what cannot be read now is neither.
        """
        sound = {digest for digest in digests if await self._sound(digest)}
        lost = set(digests) - sound
        images = await self._images_with(lost) if lost else {}
        for digest in digests:
            if ids := images.get(digest):
                await self._write_down(digest, ids)
            else:
                await self._etcd.delete(self._records.keys.image_damage(digest.hex()))
            await self._drop_damaged(digest)
        return sound

    async def repair(self, digest: Digest, stored: Stored) -> bool:
        """`stored` is verified. Whether the chunk is sound afterwards."""
        await self._drop_damaged(digest)
        await self._content.put_sent(digest, stored)
        repaired = bool(await self.look([digest]))
        if repaired:
            self._metrics.repaired_chunks.inc()
        return repaired

    async def _sound(self, digest: Digest) -> bool:
        names = await read_names(self._etcd, self._records.keys)
        return any([await self._is_sound(name, digest) for name in _blobs_of(digest, names)])

    async def _is_sound(self, name: str, digest: Digest) -> bool | None:
        """None: there is no such blob."""
        try:
            blob = await self._content.blobs.get(name)
        except FileNotFoundError:
            return None
        return await asyncio.to_thread(is_sound, blob, digest)

    async def _drop_damaged(self, digest: Digest) -> None:
        async def damaged(names: Names) -> list[str]:
            return [n for n in _blobs_of(digest, names) if await self._is_sound(n, digest) is False]

        keys = self._records.keys
        # Looked at twice, the second time when nobody can put it anew.
        if found := await damaged(await read_names(self._etcd, keys)):
            gone = await remove_blobs(self._etcd, keys, self._content.blobs, found, damaged)
            _log.warning("chunk %s was damaged: %d blobs of it are removed", digest.hex(), len(gone))

    async def _images_with(self, digests: Collection[Digest]) -> dict[Digest, list[str]]:
        """ACTIVE images that have them, few of each."""
        found: dict[Digest, list[str]] = {digest: [] for digest in digests}
        for record in await self._records.all():
            manifest = record.manifest_digest
            if record.state != Image.STATE_ACTIVE or manifest is None:
                continue
            try:
                chunks = (await self._content.manifest(manifest)).lengths()
            except RemudaError as error:
                # It has lost more than chunks.
                _log.error("%s: %s", record.name, error)
                continue
            for digest in found.keys() & chunks.keys():
                if len(found[digest]) < _MOST_IMAGES:
                    found[digest].append(record.id)
        return found

    async def _write_down(self, digest: Digest, images: Iterable[str]) -> None:
        key = self._records.keys.image_damage(digest.hex())
        kv = await self._etcd.get(key)
        record = store_pb2.DamageRecord() if kv is None else store_pb2.DamageRecord.FromString(kv.value)
        if kv is None:
            record.time.GetCurrentTime()
            self._metrics.damaged_chunks.inc()
            _log.error("chunk %s is damaged or lost", digest.hex())
        if list(record.image_ids) == list(images):
            return
        del record.image_ids[:]
        record.image_ids.extend(images)
        compare = [ops.mod_is(key, 0 if kv is None else kv.mod_revision)]
        # Where it fails, another replica has just done the same.
        await self._etcd.txn(compare=compare, success=[ops.put(key, record.SerializeToString())])


def is_sound(blob: bytes, digest: Digest) -> bool:
    try:
        verify(unpack(blob), digest)
    except DamagedChunk:
        return False
    return True


def _blobs_of(digest: Digest, names: Names) -> list[str]:
    key = chunk_key(digest)
    return [name for name in (key, names.again.get(key)) if name is not None]

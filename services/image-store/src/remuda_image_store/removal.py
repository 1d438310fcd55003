"""Removing images that the api has marked DELETING, and the chunks that only they had.

The simple, safe way: under the sweep lock, the manifests of all other images are read, and what none of them
names goes. Cost: all manifests for each removal. The sweeper that works by shard and grace comes later.
"""

import asyncio
import logging
from itertools import islice

from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import RemudaError
from remuda_core.etcd.cache import PrefixCache
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import EtcdError
from remuda_core.ids import ImageId
from remuda_core.images.chunks import Digest

from remuda_image_store.content import Content
from remuda_image_store.records import Changed, Found, Image, Records
from remuda_image_store.sweep_lock import Held, sweep_lock

_log = logging.getLogger(__name__)

# The lock is asked between batches.
_BATCH = 64
# For images that could not be removed: an instance was based on them, the backend was away.
_AGAIN_SECONDS = 15.0


class Remover:
    def __init__(self, etcd: Etcd, records: Records, content: Content, *, holder: str) -> None:
        self._etcd = etcd
        self._records = records
        self._content = content
        self._holder = holder

    async def run(self, images: PrefixCache[store_pb2.ImageRecord]) -> None:
        """Until cancelled. Every replica runs it; the lock decides who does the work."""
        async with images.subscribe() as changes:
            while True:
                for entry in list(images.items()):
                    if entry.value.image.state == Image.STATE_DELETING:
                        await self._try(ImageId(entry.value.id))
                try:
                    async with asyncio.timeout(_AGAIN_SECONDS):
                        await anext(changes)
                except TimeoutError:
                    continue
                except StopAsyncIteration:
                    # The cache was closed: the service ends.
                    return

    async def _try(self, image: ImageId) -> None:
        try:
            await self.remove(image)
        except (RemudaError, EtcdError, OSError, Changed) as error:
            _log.warning("image %s is not removed yet: %s", image, error)

    async def remove(self, image: ImageId) -> bool:
        """False: it is not DELETING (any more), or an instance is based on it, so that it has to wait.

        May be repeated at any point: chunks go first, then the manifest that names them, then the record.
        """
        if await self._records.referenced(image):
            return False
        async with sweep_lock(self._etcd, self._records.keys.image_sweep, self._holder) as lock:
            found = await self._records.by_id(image)
            if found is None or found.state != Image.STATE_DELETING:
                return False
            await self._remove_content(found, lock)
            await self._content.delete_parts(image)
            await self._records.remove(found, compare=[lock.fence])
        _log.info("image %s is removed", image)
        return True

    async def _remove_content(self, found: Found, lock: Held) -> None:
        digest = found.manifest_digest
        if digest is None:
            return
        others = [other for other in await self._records.all() if other.id != found.id]
        if any(other.manifest_digest == digest for other in others):
            return
        try:
            own = set((await self._content.manifest(digest)).lengths())
        except RemudaError as error:
            # An earlier try came as far as the manifest, or it is damaged: then its chunks cannot be named.
            _log.warning("removing image %s without its chunks: %s", found.id, error)
            own = set()
        # A manifest that cannot be read stops the removal here: its chunks are not known to be free.
        going = iter(own - await self._named_by(others) if own else ())
        while batch := list(islice(going, _BATCH)):
            lock.check()
            await self._content.delete_chunks(batch)
        lock.check()
        await self._content.delete_manifest(digest)

    async def _named_by(self, others: list[Found]) -> set[Digest]:
        named: set[Digest] = set()
        for digest in {other.manifest_digest for other in others} - {None}:
            assert digest is not None
            named.update((await self._content.manifest(digest)).lengths())
        return named

"""Removing images that the api has marked DELETING, and the chunks that only they had.

The simple, safe way: under the sweep lock, the manifests of all other images are read, and what none of them
names goes. Cost: all manifests for each removal. The sweeper that works by shard and grace comes later.
"""

import asyncio
import logging
from collections.abc import Sequence
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
        if found.manifest_digest is not None:
            others = [other for other in await self._records.all() if other.id != found.id]
            await drop_content(self._content, found.manifest_digest, others, lock)


async def drop_content(content: Content, digest: Digest, others: Sequence[Found], lock: Held) -> None:
    """Removes a manifest and its chunks, but what one of `others` has. The lock is held.

    Raises DIGEST_MISMATCH, and has removed nothing, when a manifest of theirs cannot be read: then it is not
    known which chunks are free.
    """
    if any(other.manifest_digest == digest for other in others):
        return
    try:
        own = set((await content.manifest(digest)).lengths())
    except RemudaError as error:
        # An earlier try came as far as the manifest, or it is damaged: then its chunks cannot be named.
        _log.warning("removing manifest %s without its chunks: %s", digest.hex(), error)
        own = set()
    going = iter(own - await _named_by(content, others) if own else ())
    while batch := list(islice(going, _BATCH)):
        lock.check()
        await content.delete_chunks(batch)
    lock.check()
    await content.delete_manifest(digest)


async def _named_by(content: Content, images: Sequence[Found]) -> set[Digest]:
    named: set[Digest] = set()
    for digest in {image.manifest_digest for image in images} - {None}:
        assert digest is not None
        named.update((await content.manifest(digest)).lengths())
    return named

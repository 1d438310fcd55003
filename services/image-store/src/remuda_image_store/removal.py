"""Removing images that the api has marked DELETING: the record, its charge, its upload. What only it had is
garbage from then on (sweeping.py).
"""

import asyncio
import logging

from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.cache import PrefixCache
from remuda_core.etcd.errors import EtcdError
from remuda_core.ids import ImageId

from remuda_image_store.content import Content
from remuda_image_store.records import Changed, Image, Records

_log = logging.getLogger(__name__)

# For images that could not be removed: an instance was based on them, the backend was away.
_AGAIN_SECONDS = 15.0


class Remover:
    def __init__(self, records: Records, content: Content) -> None:
        self._records = records
        self._content = content

    async def run(self, images: PrefixCache[store_pb2.ImageRecord]) -> None:
        """Until cancelled. Every replica runs it; of two that remove the same image, one does it."""
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

        May be repeated at any point. Parts of its upload that come later are the sweeper's.
        """
        found = await self._records.by_id(image)
        if found is None or found.state != Image.STATE_DELETING or await self._records.referenced(image):
            return False
        await self._content.delete_parts(image)
        unused = ops.absent_prefix(self._records.keys.image_refs(image))
        await self._records.remove(found, compare=[unused])
        _log.info("image %s is removed", image)
        return True

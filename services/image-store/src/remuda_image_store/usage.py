"""remuda_image_store_bytes{kind}: what the backend holds, counted now and then by listing it.

chunks, manifests, uploads: as stored; virtual: disks of ACTIVE images; free, capacity: of a local backend.
"""

import asyncio
import logging

from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import RemudaError
from remuda_core.etcd.cache import PrefixCache
from remuda_core.telemetry.metrics import Metrics

from remuda_image_store.blobs import Blobs
from remuda_image_store.content import CHUNKS, MANIFESTS
from remuda_image_store.ledger import UPLOADS
from remuda_image_store.records import Image

_log = logging.getLogger(__name__)

_KINDS = {"chunks": CHUNKS, "manifests": MANIFESTS, "uploads": UPLOADS}


class Usage:
    def __init__(self, blobs: Blobs, metrics: Metrics) -> None:
        self._blobs = blobs
        self._bytes = metrics.image_store_bytes

    async def count(self, images: PrefixCache[store_pb2.ImageRecord]) -> None:
        for kind, prefix in _KINDS.items():
            self._bytes.labels(kind).set(sum([blob.size_bytes async for blob in self._blobs.list(prefix)]))
        active = (entry.value.image for entry in images.items())
        virtual = sum(image.virtual_bytes for image in active if image.state == Image.STATE_ACTIVE)
        self._bytes.labels("virtual").set(virtual)
        space = self._blobs.space()
        if space is not None:
            self._bytes.labels("free").set(space.free_bytes)
            self._bytes.labels("capacity").set(space.capacity_bytes)

    async def run(self, images: PrefixCache[store_pb2.ImageRecord], every_seconds: float) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.count(images)
            except (OSError, RemudaError) as error:
                _log.warning("the backend cannot be counted: %s", error)
            await asyncio.sleep(every_seconds)

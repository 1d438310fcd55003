"""What is referred to: by the manifests of all images that are not removed yet, and by unfinished uploads.

Held for some shards at a time, so that its size is bounded whatever the store holds: about 130 bytes per
distinct chunk. Every manifest is read once for each round over the shards (`rounds`).
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest

from remuda_image_store import ledger
from remuda_image_store.blob_names import shard_of
from remuda_image_store.content import Content
from remuda_image_store.ledger import UPLOADS
from remuda_image_store.marking import SHARDS, Needed
from remuda_image_store.records import Found, Image, Records

_log = logging.getLogger(__name__)

MOST_DIGESTS = 1 << 20
"""In memory at once."""
_FILLING = (Image.STATE_UPLOADING, Image.STATE_PENDING)
_WITH_MANIFEST = (Image.STATE_PENDING, Image.STATE_ACTIVE, Image.STATE_DELETING)


class References:
    """Of the content of some shards. `refresh` before it is asked; it reads only what is new."""

    def __init__(self, records: Records, content: Content, shards: Collection[str] = SHARDS) -> None:
        self.orphans: set[ImageId] = set()
        """Images without a use for what lies under their uploads."""
        self._records = records
        self._content = content
        self._shards = frozenset(shards)
        self._active: defaultdict[str, set[Digest]] = defaultdict(set)
        self._others: defaultdict[str, set[Digest]] = defaultdict(set)
        self._manifests: set[Digest] = set()
        self._read: set[Digest] = set()
        self._read_active: set[Digest] = set()
        self._ledgers: set[str] = set()

    def needed(self, shard: str) -> Needed:
        return Needed(chunks=self._active[shard] | self._others[shard], manifests=self._manifests)

    def active(self, shard: str) -> set[Digest]:
        """Chunks that ACTIVE images have."""
        return self._active[shard]

    async def refresh(self) -> None:
        """What came up to now is in it; what went meanwhile may be in it too.

        Raises DIGEST_MISMATCH when the manifest of an ACTIVE image cannot be read: then it is not known what
        may be removed.
        """
        # Listed before the records are read: an image that has none then will never have one.
        listed = [blob.key async for blob in self._content.blobs.list(UPLOADS.rstrip("/"))]
        images = {found.id: found for found in await self._records.all()}
        owners = {key: ImageId(key.split("/")[1]) for key in listed}
        idle = {image for image in owners.values() if image not in images or _is_idle(images[image])}
        self.orphans = idle
        for key, image in owners.items():
            if image not in idle and ledger.is_ledger(key) and key not in self._ledgers:
                await self._add_ledger(key)
        for found in images.values():
            await self._add_image(found)

    async def _add_ledger(self, key: str) -> None:
        try:
            self._add(self._others, ledger.parse(await self._content.blobs.get(key)))
        except FileNotFoundError:
            # The upload has ended meanwhile; it is an image now, or nothing.
            return
        except RemudaError as error:
            if error.reason is not Reason.DIGEST_MISMATCH:
                raise
            _log.warning("%s: %s", key, error)
        self._ledgers.add(key)

    async def _add_image(self, found: Found) -> None:
        digest, active = found.manifest_digest, found.state == Image.STATE_ACTIVE
        if digest is None or found.state not in _WITH_MANIFEST:
            return
        self._manifests.add(digest)
        if digest in self._read_active or (digest in self._read and not active):
            return
        try:
            manifest = await self._content.manifest(digest)
        except RemudaError as error:
            if active or error.reason is not Reason.DIGEST_MISMATCH:
                raise
            # PENDING: it is put again before the image is ACTIVE. DELETING: nobody can use it.
            _log.info("%s: %s", found.name, error)
            return
        self._read.add(digest)
        if active:
            self._read_active.add(digest)
        self._add(self._active if active else self._others, manifest.digests)

    def _add(self, to: defaultdict[str, set[Digest]], digests: Iterable[Digest]) -> None:
        for digest in digests:
            if digest != HOLE and (shard := shard_of(digest)) in self._shards:
                to[shard].add(digest)


def _is_idle(found: Found) -> bool:
    # What a removal leaves is taken by whoever removes: the record is there until then.
    return found.state not in (*_FILLING, Image.STATE_DELETING)


def rounds(images: Iterable[Found], most: int = MOST_DIGESTS) -> list[tuple[str, ...]]:
    """The shards in groups whose references fit into memory."""
    disks = {found.manifest_digest: found.record.image.virtual_bytes for found in images}
    digests = sum(-(-size // CHUNK_BYTES) for size in disks.values())
    groups = min(len(SHARDS), max(1, -(-digests // most)))
    size = -(-len(SHARDS) // groups)
    return [SHARDS[at : at + size] for at in range(0, len(SHARDS), size)]

"""Which chunks a host may name without sending them: those of images that its grant lets it read, and those
that it has sent for the image that it fills. Whether the store has others is nobody's business.

The store's own knowledge never enters an answer about a chunk that is not known in this sense: that is the
whole defence against asking it what other projects' disks hold.
"""

import asyncio
import logging
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId
from remuda_core.images.chunks import Digest

from remuda_image_store.content import Content
from remuda_image_store.ledger import Brought, ledger_prefix, parse_brought
from remuda_image_store.lru import Lately
from remuda_image_store.records import Image, Records

_log = logging.getLogger(__name__)

READABLE = (Image.STATE_ACTIVE, Image.STATE_DELETING)
"""An image that waits for its removal while an instance is based on it is still read."""

# Chunks of all manifests, or ledgers, that are kept in memory: 4 TiB of disks, some 200 MB.
_KEPT_CHUNKS = 1 << 20
_READS_AT_ONCE = 16


class Lengths:
    """Chunks of images, with the bytes of each."""

    def __init__(self, records: Records, content: Content) -> None:
        self._records = records
        self._content = content
        self._lately: Lately[Digest, dict[Digest, int]] = Lately(_KEPT_CHUNKS)

    async def of(self, manifest: Digest) -> Mapping[Digest, int]:
        """Raises DIGEST_MISMATCH when it is damaged or lost."""
        found = self._lately.get(manifest)
        if found is None:
            found = (await self._content.manifest(manifest)).lengths()
            self._lately.put(manifest, found)
        return found

    async def of_images(self, images: Iterable[str]) -> list[Mapping[Digest, int]]:
        """Of those that can be read. One that cannot (any more) helps nobody, and is no error."""
        found: list[Mapping[Digest, int]] = []
        for image in dict.fromkeys(images):
            record = await self._records.by_id(ImageId(image))
            if record is None or record.state not in READABLE or record.manifest_digest is None:
                continue
            try:
                found.append(await self.of(record.manifest_digest))
            except RemudaError as error:
                if error.reason is not Reason.DIGEST_MISMATCH:
                    raise
                _log.warning("chunks of %s count as unknown: %s", record.name, error)
        return found


@dataclass(slots=True)
class _Ledger:
    keys: set[str] = field(default_factory=set)
    chunks: dict[Digest, Brought] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.chunks) + len(self.keys)


class Ledgers:
    """What was sent for images that are being filled, by whichever replica took it."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._blobs = content.blobs
        self._lately: Lately[ImageId, _Ledger] = Lately(_KEPT_CHUNKS)

    async def read(self, image: ImageId) -> Mapping[Digest, Brought]:
        """Everything whose `add` has returned, anywhere."""
        listed = {blob.key async for blob in self._blobs.list(ledger_prefix(image).rstrip("/"))}
        ledger = self._lately.get(image)
        if ledger is None or not ledger.keys <= listed:
            ledger = _Ledger()
        at_once = asyncio.Semaphore(_READS_AT_ONCE)

        async def take(key: str) -> None:
            async with at_once:
                chunks = await self._entries(key)
            for chunk in chunks:
                old = ledger.chunks.get(chunk.digest)
                # Sent twice in two encodings: what counts does not depend on the order of reading.
                if old is None or old.stored_bytes < chunk.stored_bytes:
                    ledger.chunks[chunk.digest] = chunk
            ledger.keys.add(key)

        await asyncio.gather(*map(take, sorted(listed - ledger.keys)))
        self._lately.put(image, ledger)
        return ledger.chunks

    async def _entries(self, key: str) -> Sequence[Brought]:
        try:
            return parse_brought(await self._blobs.get(key))
        except FileNotFoundError:
            # The image has just become ACTIVE, or is being removed.
            return ()
        except RemudaError as error:
            if error.reason is not Reason.DIGEST_MISMATCH:
                raise
            _log.warning("%s is left aside: %s", key, error)
            return ()

    async def add(self, image: ImageId, chunks: Collection[Brought]) -> str:
        """Durable when it returns; the key, for `take_back`."""
        key = f"{ledger_prefix(image)}{uuid.uuid4().hex}"
        await self._content.put_brought(key, chunks)
        return key

    async def take_back(self, key: str) -> None:
        await self._blobs.delete([key])

    async def remove(self, image: ImageId) -> None:
        self._lately.drop(image)
        listed = [blob.key async for blob in self._blobs.list(ledger_prefix(image).rstrip("/"))]
        await self._blobs.delete(listed)


def lacking_from(
    wanted: Mapping[Digest, int], readable: Sequence[Mapping[Digest, int]], brought: Mapping[Digest, Brought]
) -> tuple[set[Digest], int]:
    """Of a manifest's chunks with their lengths: those that are not known, or known with another length; and
    the stored bytes of those that no readable image has.
    """
    lacking: set[Digest] = set()
    stored_bytes = 0
    for digest, length in wanted.items():
        if any(lengths.get(digest) == length for lengths in readable):
            continue
        chunk = brought.get(digest)
        if chunk is None or chunk.plain_bytes != length:
            lacking.add(digest)
        else:
            stored_bytes += chunk.stored_bytes
    return lacking, stored_bytes

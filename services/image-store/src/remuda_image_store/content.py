"""Chunks, manifests and parts of uploads as blobs: the names, and what is behind them."""

import asyncio
import errno
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import TypeVar

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId
from remuda_core.images.chunks import (
    HEAD_BYTES,
    DamagedChunk,
    Digest,
    Stored,
    decode,
    digest_of,
    encode,
    pack_head,
    unpack_parts,
)
from remuda_core.images.manifest import BadManifest, Manifest, parse, serialize

from remuda_image_store import ledger
from remuda_image_store.blob_names import Names, Plain, View
from remuda_image_store.blobs import Blob, Blobs
from remuda_image_store.ledger import UPLOADS, Brought, serialize_brought

CHUNKS, MANIFESTS = "chunks/", "manifests/"

_CHECKS_AT_ONCE = 32
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")


class Content:
    """Errors are RemudaError: DIGEST_MISMATCH for what is damaged or lost, DISK_FULL."""

    def __init__(self, blobs: Blobs, names: View | None = None) -> None:
        """`names`: which of them must not be relied on; None: nothing is ever removed."""
        self._blobs = blobs
        self._names: View = names or Plain()
        self.on_damage: Callable[[Digest], None] = _nobody
        """Told of every chunk that was asked for and is lost or damaged."""

    @property
    def blobs(self) -> Blobs:
        return self._blobs

    # --- chunks ---

    async def put_chunk(self, digest: Digest, data: bytes) -> int:
        """`digest` is that of `data`. Returns the bytes that came new into the store."""
        key = chunk_key(digest)
        # Asked first: compressing costs more than asking, and most chunks of a second image are known.
        if await self.size(key) is not None:
            return 0
        stored = await asyncio.to_thread(encode, data)
        head = pack_head(stored)
        return len(head) + len(stored.data) if await self._put_new(key, stored.data, head=head) else 0

    async def put_sent(self, digest: Digest, stored: Stored) -> None:
        """What a host has sent, verified. How long it takes does not tell whether it was there."""
        await self._put_new(chunk_key(digest), stored.data, head=pack_head(stored), blind=True)

    async def stored_chunk(self, digest: Digest, *, once: bool = False) -> Stored:
        """As it is stored, not verified. `once`: see `Blobs.get_parted`."""

        def read(key: str) -> Awaitable[tuple[bytes, bytes]]:
            return self._blobs.get_parted(key, HEAD_BYTES, once=once)

        try:
            return unpack_parts(*await self._reading(chunk_key(digest), read))
        except (FileNotFoundError, DamagedChunk) as error:
            self.on_damage(digest)
            raise _lost(f"chunk {digest.hex()} is lost or damaged in the store") from error

    async def verified_chunk(self, digest: Digest, length: int) -> Stored:
        """As it is stored; `length`: of the plain bytes."""
        return (await self._verified(digest, length))[0]

    async def chunk(self, digest: Digest, length: int) -> bytes:
        """The plain bytes, verified; for a client: hosts ask for what is stored."""
        return (await self._verified(digest, length, once=True))[1]

    async def _verified(self, digest: Digest, length: int, *, once: bool = False) -> tuple[Stored, bytes]:
        stored = await self.stored_chunk(digest, once=once)
        try:
            return stored, await asyncio.to_thread(decode, stored, digest, length)
        except DamagedChunk as error:
            self.on_damage(digest)
            raise _lost(str(error)) from error

    async def sizes(self, digests: Collection[Digest], names: Names | None = None) -> dict[Digest, int]:
        """Bytes of those that are in the store, as they are stored; as far as `names` are right (None: what
        is known of them here).
        """
        at_once = asyncio.Semaphore(_CHECKS_AT_ONCE)

        async def size(digest: Digest) -> int | None:
            async with at_once:
                return await self.size(chunk_key(digest), names)

        ordered = list(digests)
        answers = await asyncio.gather(*map(size, ordered))
        return {digest: size for digest, size in zip(ordered, answers, strict=True) if size is not None}

    async def lacking(self, digests: Collection[Digest], names: Names | None = None) -> set[Digest]:
        """Those that are not in the store; `names`: as in `sizes`."""
        return set(digests) - (await self.sizes(digests, names)).keys()

    # --- names ---

    @property
    def names(self) -> View:
        return self._names

    async def size(self, key: str, names: Names | None = None) -> int | None:
        """Of the blob that holds the content named `key`, and may be relied on; None: there is none."""
        for name in candidates(key, names or self._names.now()):
            if (size := await self._blobs.size(name)) is not None:
                return size
        return None

    async def _get(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        return await self._reading(key, self._blobs.get)

    async def _reading(self, key: str, read: Callable[[str], Awaitable[T]]) -> T:
        """Raises FileNotFoundError. For reading, also what is doomed is good while it is there."""
        try:
            return await read(key)
        except FileNotFoundError:
            instead = await self._names.look_up(key)
            if instead is None:
                raise
            return await read(instead)

    async def _put_new(self, key: str, blob: bytes, *, head: bytes = b"", blind: bool = False) -> bool:
        if usable := candidates(key, self._names.now()):
            return await self._put(usable[0], blob, head=head, blind=blind)
        # Somebody may remove whatever has these names at any time.
        instead = f"{key}.{uuid.uuid4().hex[:12]}"
        await self._put(instead, blob, head=head)
        await self._names.use_again(key, instead)
        return True

    # --- manifests ---

    async def put_manifest(self, manifest: Manifest) -> Digest:
        blob = serialize(manifest)
        digest = digest_of(blob)
        if await self.size(manifest_key(digest)) is None:
            await self._put_new(manifest_key(digest), blob)
        return digest

    async def manifest_blob(self, digest: Digest) -> bytes:
        """Not verified; the host does that."""
        try:
            return await self._get(manifest_key(digest))
        except FileNotFoundError as error:
            raise _lost(f"manifest {digest.hex()} is lost") from error

    async def manifest(self, digest: Digest) -> Manifest:
        blob = await self.manifest_blob(digest)
        try:
            return parse(blob, digest)
        except BadManifest as error:
            raise _lost(str(error)) from error

    # --- parts of uploads ---

    async def put_part(self, image: ImageId, segment: str, offset: int, data: bytes) -> None:
        await self._put(part_key(image, segment, offset), data)

    async def delete_part(self, image: ImageId, segment: str, offset: int) -> None:
        await self._blobs.delete([part_key(image, segment, offset)])

    async def parts(self, image: ImageId, segment: str) -> list[tuple[int, Blob]]:
        """(offset in the file, blob) in order; one may be there that was never recorded."""
        found = [blob async for blob in self._blobs.list(f"{UPLOADS}{image}/{segment}")]
        return sorted((int(blob.key.rpartition("/")[2], 16), blob) for blob in found)

    async def delete_parts(self, image: ImageId) -> None:
        await self._blobs.delete([blob.key async for blob in self._blobs.list(f"{UPLOADS}{image}")])

    # --- ledgers of uploads ---

    async def put_ledger(self, image: ImageId, segment: str, offset: int, digests: Sequence[Digest]) -> None:
        """Of a raw upload: chunks of the file from `offset` on, in order."""
        await self._put(ledger_key(image, segment, offset), ledger.serialize(digests))

    async def delete_ledger(self, image: ImageId, segment: str, offset: int) -> None:
        await self._blobs.delete([ledger_key(image, segment, offset)])

    async def ledgers(self, image: ImageId, segment: str) -> list[tuple[int, list[Digest]]]:
        """(offset in the file, chunks from there) in order; one may be there that was never recorded."""
        prefix = ledger.segment_prefix(image, segment).rstrip("/")
        keys = sorted([blob.key async for blob in self._blobs.list(prefix)])
        blobs = [(int(key.rpartition("/")[2], 16), await self._blobs.get(key)) for key in keys]
        return [(offset, ledger.parse(blob)) for offset, blob in blobs]

    async def put_brought(self, key: str, chunks: Iterable[Brought]) -> None:
        await self._put(key, serialize_brought(chunks))

    async def _put(self, key: str, blob: bytes, *, head: bytes = b"", blind: bool = False) -> bool:
        try:
            return await self._blobs.put(key, blob, head=head, blind=blind)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise RemudaError(Reason.DISK_FULL, "the image store has no room left") from error
            raise


def chunk_key(digest: Digest) -> str:
    name = digest.hex()
    return f"{CHUNKS}{name[:2]}/{name}"


def manifest_key(digest: Digest) -> str:
    name = digest.hex()
    return f"{MANIFESTS}{name[:2]}/{name}"


def candidates(key: str, names: Names) -> list[str]:
    """Where the content named `key` may be, in the order in which they are preferred."""
    found = (key, names.again.get(key))
    return [name for name in found if name is not None and name not in names.doomed]


def part_key(image: ImageId, segment: str, offset: int) -> str:
    # Zero-padded: the order of the names is that of the bytes.
    return f"{UPLOADS}{image}/{segment}/{offset:016x}"


def ledger_key(image: ImageId, segment: str, offset: int) -> str:
    return f"{ledger.segment_prefix(image, segment)}{offset:016x}"


def _lost(message: str) -> RemudaError:
    return RemudaError(Reason.DIGEST_MISMATCH, message)


def _nobody(_: Digest) -> None:
    """Is told."""

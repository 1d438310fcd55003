"""A host fills a new image: which chunks it has to send, what it sends, and the commit that makes it ACTIVE.

    FindChunks   -> what is neither in images that it may read nor sent before
    WriteChunks  -> verified, stored; then the ledger says so: from here on every replica knows it
    CommitImage  -> every digest is known -> manifest put -> PENDING, charged
                    -> every chunk is there, and stays -> ACTIVE -> the ledger goes

Each may be repeated, at any replica, after any of them was killed. What was stored and never reached a ledger
is removed as garbage. A chunk that vanishes although it is known makes the commit IMAGE_INCOMPLETE; asked
again, the store then says that it is lacking, since known chunks are looked for.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from weakref import WeakValueDictionary

from remuda.image.v1 import chunk_pb2, image_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason, RemudaError, invalid_argument
from remuda_core.etcd.client import Etcd
from remuda_core.ids import ImageId
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest, digest_of
from remuda_core.images.manifest import BadManifest, Manifest, chunk_count, parse, serialize

from remuda_image_store.activation import Activation, Incomplete
from remuda_image_store.blob_names import read_names
from remuda_image_store.content import Content
from remuda_image_store.known_chunks import Ledgers, Lengths, lacking_from
from remuda_image_store.ledger import Brought
from remuda_image_store.receiving import Intake, over_limit
from remuda_image_store.records import Changed, Found, Image, Records, no_longer

_log = logging.getLogger(__name__)

_FILLABLE = (Image.STATE_UPLOADING, Image.STATE_PENDING)
# A call that lasts longer is not getting anywhere; whoever has sent something in earnest begins anew.
_WRITE_SECONDS = 300.0
# Each of them holds up to 24 MiB.
_WRITES_AT_ONCE = 32
# One host that opens calls and sends nothing does not keep others from sending.
_WRITES_PER_HOST = 8
# The manifest of a disk of 4 TiB takes some 150 MB while it is looked at.
_COMMITS_AT_ONCE = 4
_COMMIT_TRIES = 5
_SECTOR_BYTES = 512


class Filling:
    """Grants are verified by the caller; whether they fit the image's record is seen to here.

    Everything raises GRANT_REFUSED, IMAGE_NOT_FOUND, STATE_FORBIDS_ACTION, STORE_UNAVAILABLE.
    """

    def __init__(
        self,
        etcd: Etcd,
        records: Records,
        content: Content,
        lengths: Lengths,
        activation: Activation,
        *,
        largest_bytes: int,
    ) -> None:
        """`largest_bytes`: of a virtual disk."""
        self._etcd = etcd
        self._records = records
        self._content = content
        self._lengths = lengths
        self._ledgers = Ledgers(content)
        self._activation = activation
        self._largest_bytes = largest_bytes
        self._writes = asyncio.Semaphore(_WRITES_AT_ONCE)
        self._host_writes: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._commits = asyncio.Semaphore(_COMMITS_AT_ONCE)

    async def lacking(self, grant: chunk_pb2.Grant, digests: Sequence[Digest]) -> list[Digest]:
        """Those to be sent, in order."""
        found = await self._fillable(grant)
        brought = await self._ledgers.read(found.id)
        readable = await self._lengths.of_images(grant.readable_images)
        known = {
            digest for digest in digests if digest in brought or any(digest in each for each in readable)
        }
        known -= await self._content.lacking(known)
        return [digest for digest in dict.fromkeys(digests) if digest not in known]

    async def write(
        self,
        grant: chunk_pb2.Grant,
        first: chunk_pb2.WriteChunksRequest,
        frames: AsyncIterator[chunk_pb2.WriteChunksRequest],
    ) -> list[Brought]:
        """Safe when it returns. Raises also as Intake does."""
        # Bound to a name: the dictionary forgets it as soon as this host has no call here.
        own = self._host_writes.setdefault(grant.host_id, asyncio.Semaphore(_WRITES_PER_HOST))
        async with own, self._writes, asyncio.timeout(_WRITE_SECONDS):
            found = await self._fillable(grant)
            intake = Intake(
                self._content,
                await self._ledgers.read(found.id),
                byte_limit=grant.byte_limit,
                most_chunks=chunk_count(self._largest_bytes),
            )
            try:
                await intake.take(first)
                async for frame in frames:
                    await intake.take(frame)
                chunks = await intake.finish()
            finally:
                await intake.abort()
            key = await self._ledgers.add(found.id, chunks)
            try:
                await self._fillable(grant)
            except RemudaError:
                # Whoever removed the image may have been past its ledgers.
                await self._ledgers.take_back(key)
                raise
            await self._check_kept(chunks)
            return chunks

    async def _check_kept(self, chunks: Sequence[Brought]) -> None:
        """A chunk that was there already may have been on its way out; from the ledger on it is kept, so that
        what is not doomed now, and is there, stays (see `blob_names`). Raises STORE_UNAVAILABLE.
        """
        names = await read_names(self._etcd, self._records.keys)
        if await self._content.lacking({chunk.digest for chunk in chunks}, names):
            # Sent again, they get names that are not doomed.
            await self._content.names.reach(names.revision)
            raise RemudaError(
                Reason.STORE_UNAVAILABLE,
                "chunks were removed as garbage while they were sent once more",
                retry_after_seconds=1.0,
            )

    async def commit(
        self, grant: chunk_pb2.Grant, request: chunk_pb2.CommitImageRequest
    ) -> chunk_pb2.CommitImageResponse:
        """Raises IMAGE_INCOMPLETE, INVALID_ARGUMENT; QUOTA_EXCEEDED, the project's: then it is FAILED."""
        await self._filled(grant)
        async with self._commits:
            return await self._commit_patiently(grant, request)

    async def _commit_patiently(
        self, grant: chunk_pb2.Grant, request: chunk_pb2.CommitImageRequest
    ) -> chunk_pb2.CommitImageResponse:
        manifest, digest = await asyncio.to_thread(_parsed, request.manifest, self._largest_bytes)
        for _ in range(_COMMIT_TRIES):
            found = await self._filled(grant)
            if found.state == Image.STATE_ACTIVE and found.manifest_digest == digest:
                await self._forget(found.id)
                return _answer(found)
            if found.state not in _FILLABLE:
                raise _refused(found)
            try:
                active = await self._commit(found, grant, request, manifest, digest)
            except Changed:
                # Another replica commits it as well, or it is being deleted.
                continue
            await self._forget(found.id)
            return _answer(active)
        raise RemudaError(
            Reason.STORE_UNAVAILABLE,
            f"image {grant.writable_image} was changed by others meanwhile",
            retry_after_seconds=1.0,
        )

    async def _commit(
        self,
        found: Found,
        grant: chunk_pb2.Grant,
        request: chunk_pb2.CommitImageRequest,
        manifest: Manifest,
        digest: Digest,
    ) -> Found:
        brought = await self._ledgers.read(found.id)
        readable = await self._lengths.of_images(grant.readable_images)
        lacking, stored_bytes = await asyncio.to_thread(lacking_from, manifest.lengths(), readable, brought)
        if lacking:
            raise Incomplete(lacking)
        if stored_bytes > grant.byte_limit:
            raise over_limit(grant.byte_limit)
        await self._content.put_manifest(manifest)
        pending = await self._pend(found, request, manifest, digest, stored_bytes)
        return await self._activation.activate(pending, manifest)

    async def _pend(
        self,
        found: Found,
        request: chunk_pb2.CommitImageRequest,
        manifest: Manifest,
        digest: Digest,
        stored_bytes: int,
    ) -> Found:
        def pend(image: image_pb2.Image) -> None:
            image.state = Image.STATE_PENDING
            image.status_message = "its chunks are being verified"
            image.virtual_bytes = manifest.virtual_bytes
            image.manifest_digest = digest.hex()
            image.stored_bytes = stored_bytes
            image.source.consistency = request.consistency
            image.source.counts.CopyFrom(request.counts)
            image.source.counts.stored_bytes = stored_bytes
            if request.HasField("snapshot_time"):
                image.source.snapshot_time.CopyFrom(request.snapshot_time)

        charge = store_pb2.ImageCharge(virtual_bytes=manifest.virtual_bytes, stored_bytes=stored_bytes)
        try:
            return await self._records.change(found, pend, charge=charge)
        except RemudaError as error:
            if error.reason is Reason.QUOTA_EXCEEDED:
                await self._fail(found, error.message)
            raise

    async def _fail(self, found: Found, message: str) -> None:
        def fail(image: image_pb2.Image) -> None:
            image.state = Image.STATE_FAILED
            image.status_message = message
            # From an earlier commit: nothing of it is kept for an image that never will be.
            image.manifest_digest = ""

        await self._records.change(found, fail)
        await self._forget(found.id)

    async def _forget(self, image: ImageId) -> None:
        """What stays is removed as garbage."""
        try:
            await self._ledgers.remove(image)
        except (RemudaError, OSError) as error:
            _log.warning("ledgers of %s stay for now: %s", image, error)

    async def _fillable(self, grant: chunk_pb2.Grant) -> Found:
        found = await self._filled(grant)
        if found.state not in _FILLABLE:
            raise _refused(found)
        return found

    async def _filled(self, grant: chunk_pb2.Grant) -> Found:
        """The image that this grant's operation fills, in any state."""
        image = ImageId(grant.writable_image)
        found = await self._records.by_id(image)
        if found is None:
            raise RemudaError(Reason.IMAGE_NOT_FOUND, f"image {image} does not exist")
        if not grant.operation_id or found.record.operation_id != grant.operation_id:
            raise RemudaError(
                Reason.GRANT_REFUSED, f"the image grant is refused: {image} is not its operation's to fill"
            )
        return found


def _parsed(blob: bytes, largest_bytes: int) -> tuple[Manifest, Digest]:
    try:
        manifest = parse(blob, digest_of(blob))
    except BadManifest as error:
        raise invalid_argument("manifest", str(error)) from error
    if manifest.virtual_bytes > largest_bytes:
        raise invalid_argument("manifest", f"a disk of more than the {largest_bytes} bytes allowed here")
    # One digest is one chunk of one length; only the last chunk may be shorter than the others.
    if manifest.virtual_bytes % _SECTOR_BYTES:
        raise invalid_argument("manifest", f"a disk whose size is not a multiple of {_SECTOR_BYTES}")
    last = manifest.digests[-1]
    if manifest.virtual_bytes % CHUNK_BYTES and last != HOLE and last in manifest.digests[:-1]:
        raise invalid_argument("manifest", "the last chunk, a shorter one, has the digest of another one")
    return manifest, digest_of(serialize(manifest))


def _refused(found: Found) -> RemudaError:
    if found.state == Image.STATE_FAILED:
        return RemudaError(
            Reason.STATE_FORBIDS_ACTION, f"{found.name} is FAILED: {found.record.image.status_message}"
        )
    return no_longer(found, "UPLOADING")


def _answer(found: Found) -> chunk_pb2.CommitImageResponse:
    image = found.record.image
    return chunk_pb2.CommitImageResponse(
        manifest_digest=image.manifest_digest, stored_bytes=image.stored_bytes
    )

"""A complete upload becomes an image.

    raw:   its chunks are put already, and named by its ledgers -> SHA-256 checked -> manifest put
    qcow2: assembled, SHA-256 checked -> inspected -> raw -> chunks put -> manifest put
    -> PENDING, charged (from here on its chunks count as referenced)
    -> every digest is there, and nothing was doomed meanwhile -> ACTIVE

Every step may be repeated: chunks and manifests are named by their content, and both transactions compare the
record's revision. An import goes on when its client goes away; who asks again on this replica joins it, and
another replica starts over.
"""

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from remuda.image.v1 import image_pb2
from remuda.store.v1.image_pb2 import ImageCharge
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.ids import ImageId
from remuda_core.images.chunks import CHUNK_BYTES, Digest
from remuda_core.images.manifest import Manifest
from remuda_core.rpc.context import detached

from remuda_image_store import convert
from remuda_image_store.activation import Activation, Incomplete
from remuda_image_store.content import Content
from remuda_image_store.inspection import Refused, check_largest, inspect
from remuda_image_store.raw_uploads import received, sha256_of
from remuda_image_store.records import Changed, Found, Image, Records, no_longer
from remuda_image_store.uploads import mismatch, read_back

_log = logging.getLogger(__name__)

# After these no other try can succeed.
_FINAL = (Reason.IMAGE_REFUSED, Reason.DIGEST_MISMATCH, Reason.QUOTA_EXCEEDED)
TAKES_BYTES = (Image.STATE_UPLOADING, Image.STATE_PENDING)


class Importer:
    """Use with `async with`: leaving ends the imports that run, which start over when asked for again."""

    def __init__(
        self,
        records: Records,
        content: Content,
        activation: Activation,
        *,
        scratch: Path,
        scratch_bytes: int,
        largest_bytes: int,
    ) -> None:
        """`scratch_bytes`: most that one import may take; `largest_bytes`: of a virtual disk."""
        self._records = records
        self._content = content
        self._activation = activation
        self._scratch = scratch
        self._scratch_bytes = scratch_bytes
        self._largest_bytes = largest_bytes
        self._running: dict[ImageId, asyncio.Task[Found]] = {}
        # One at a time: the scratch space is bounded, and one import keeps the cores busy.
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> "Importer":
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def admit(self, found: Found, *, committed: int) -> None:
        """Before bytes beyond `committed` are taken: what cannot become an image need not be sent.

        Raises IMAGE_REFUSED (then the image is FAILED), DISK_FULL.
        """
        try:
            self._check_size(found)
        except Refused as refused:
            await self.refuse(found, refused.message)
            raise
        space = await asyncio.to_thread(self._content.blobs.space)
        if space is not None and space.free_bytes < found.record.image.file_bytes - committed:
            raise RemudaError(Reason.DISK_FULL, "the image store has no room left for this file")

    async def refuse(self, found: Found, message: str) -> None:
        """The image is FAILED, unless somebody has changed it meanwhile."""
        with contextlib.suppress(Changed):
            await self._fail(found, message)

    async def complete(self, image: ImageId, sha256: str = "") -> Found:
        """The ACTIVE image; `sha256`: of the file, where it is known already.

        Raises IMAGE_REFUSED, DIGEST_MISMATCH for a wrong SHA-256, QUOTA_EXCEEDED (after these the image is
        FAILED); DISK_FULL, STATE_FORBIDS_ACTION; UPLOAD_OFFSET_MISMATCH when some of it has to be sent again.
        """
        task = self._running.get(image)
        if task is None:
            with detached():
                task = asyncio.create_task(self._import(image, sha256), name=f"import {image}")
            self._running[image] = task
            task.add_done_callback(lambda done: self._forget(image, done))
        return await asyncio.shield(task)

    def _forget(self, image: ImageId, task: asyncio.Task[Found]) -> None:
        self._running.pop(image, None)
        # Whoever waited has it; nobody may be left who did.
        if not task.cancelled() and task.exception() is not None:
            _log.info("import of %s failed: %s", image, task.exception())

    async def _import(self, image: ImageId, sha256: str) -> Found:
        found = await self._records.by_id(image)
        if found is None:
            raise RemudaError(Reason.IMAGE_NOT_FOUND, f"image {image} does not exist")
        if found.state == Image.STATE_ACTIVE:
            return found
        if found.state not in TAKES_BYTES:
            raise no_longer(found, "UPLOADING")
        await self.admit(found, committed=found.record.image.file_bytes)
        try:
            if found.record.image.format == Image.FORMAT_RAW:
                active = await self._raw(found, sha256)
            else:
                async with self._turn:
                    active = await self._qcow2(found)
        except Changed as error:
            raise await self._why_changed(image) from error
        except RemudaError as error:
            if error.reason in _FINAL:
                await self.refuse(found, error.message)
            raise
        await self._content.delete_parts(image)
        return active

    def _check_size(self, found: Found) -> None:
        size = found.record.image.file_bytes
        if found.record.image.format == Image.FORMAT_RAW:
            check_largest(size, self._largest_bytes)
        elif size > self._scratch_bytes:
            raise Refused(f"a file of {size} bytes is larger than the {self._scratch_bytes} allowed here")

    def _check_scratch(self, found: Found) -> None:
        if shutil.disk_usage(self._scratch).free < found.record.image.file_bytes:
            raise RemudaError(Reason.DISK_FULL, "the image store has no scratch room left for this file")

    async def _raw(self, found: Found, sha256: str) -> Found:
        image, upload = found.record.image, (await self._records.upload(found.id)).record
        if upload.committed_bytes != image.file_bytes:
            raise mismatch("the upload was begun again meanwhile", upload.committed_bytes)
        manifest = await received(self._content, upload, image.file_bytes)
        if lacking := await self._content.lacking(manifest.lengths()):
            raise await self._rewound(found, manifest, lacking)
        # Read back only where no single stream has brought all of it.
        if image.sha256:
            check_sha256(image.sha256, sha256 or await sha256_of(self._content, manifest))
        pending = await self._pend(found, manifest)
        try:
            return await self._activation.activate(pending, manifest)
        except Incomplete as incomplete:
            raise await self._rewound(pending, manifest, incomplete.lacking) from incomplete

    async def _rewound(self, found: Found, manifest: Manifest, lacking: Collection[Digest]) -> RemudaError:
        """Chunks that were in the store already have gone with another image since: the client has them."""
        first = next(i for i, digest in enumerate(manifest.digests) if digest in lacking)
        await self._records.rewind(found, first * CHUNK_BYTES)
        return mismatch("chunks were removed from the store meanwhile", first * CHUNK_BYTES)

    async def _qcow2(self, found: Found) -> Found:
        self._check_scratch(found)
        work = Path(tempfile.mkdtemp(prefix=f"{found.id}.", dir=self._scratch))
        try:
            raw, virtual_bytes = await self._to_raw(found, work)
            manifest = await convert.to_chunks(raw, virtual_bytes, self._content)

            async def put_again(lacking: set[Digest]) -> None:
                await convert.put_again(raw, manifest, lacking, self._content)

            if lacking := await self._content.lacking(manifest.lengths()):
                await put_again(lacking)
            pending = await self._pend(found, manifest)
            return await self._activation.activate(pending, manifest, put_again=put_again)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    async def _pend(self, found: Found, manifest: Manifest) -> Found:
        """Raises Changed, QUOTA_EXCEEDED."""
        digest = await self._content.put_manifest(manifest)
        # What the image has, not what was new in the store: others' images show nowhere.
        stored_bytes = sum((await self._content.sizes(manifest.lengths())).values())

        def pend(image: image_pb2.Image) -> None:
            image.state = Image.STATE_PENDING
            image.status_message = "its chunks are being verified"
            image.virtual_bytes = manifest.virtual_bytes
            image.manifest_digest = digest.hex()
            image.stored_bytes = stored_bytes

        charge = ImageCharge(virtual_bytes=manifest.virtual_bytes, stored_bytes=stored_bytes)
        # If it was removed meanwhile, nothing refers to what was put, and the sweeper takes it.
        return await self._records.change(found, pend, charge=charge)

    async def _to_raw(self, found: Found, work: Path) -> tuple[Path, int]:
        image = found.record.image
        upload = (await self._records.upload(found.id)).record
        source = work / "file"
        sha256 = await convert.assemble(read_back(self._content, upload), source)
        if image.sha256:
            check_sha256(image.sha256, sha256)
        virtual_bytes = await inspect(source, largest_bytes=self._largest_bytes)
        raw = work / "disk"
        room = self._scratch_bytes - source.stat().st_size
        await convert.to_raw(source, raw, virtual_bytes=virtual_bytes, room_bytes=room)
        source.unlink()
        return raw, virtual_bytes

    async def _fail(self, found: Found, message: str) -> None:
        def fail(image: image_pb2.Image) -> None:
            image.state = Image.STATE_FAILED
            image.status_message = message

        removed = ops.delete(self._records.keys.upload(found.id))
        # It keeps its name, and nothing else.
        charge = ImageCharge() if found.record.HasField("charge") else None
        await self._records.change(found, fail, charge=charge, success=[removed])
        await self._content.delete_parts(found.id)

    async def _why_changed(self, image: ImageId) -> RemudaError:
        now = await self._records.by_id(image)
        if now is None or now.state == Image.STATE_DELETING:
            return RemudaError(Reason.STATE_FORBIDS_ACTION, f"image {image} is being deleted")
        return RemudaError(
            Reason.STORE_UNAVAILABLE,
            f"image {image} was changed by another replica meanwhile",
            retry_after_seconds=1.0,
        )


def check_sha256(given: str, received: str) -> None:
    """Raises DIGEST_MISMATCH."""
    if given != received:
        raise RemudaError(
            Reason.DIGEST_MISMATCH,
            "the SHA-256 of the file is not the one that was given",
            metadata={"given": given, "received": received},
        )

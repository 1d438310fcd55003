"""A complete upload becomes an image.

    assembled, SHA-256 checked -> inspected -> raw -> chunks put -> manifest put
    -> PENDING (from here on its chunks count as referenced)
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
from pathlib import Path

from remuda.image.v1 import image_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.ids import ImageId
from remuda_core.images.chunks import Digest
from remuda_core.rpc.context import detached

from remuda_image_store import convert
from remuda_image_store.activation import Activation
from remuda_image_store.content import Content
from remuda_image_store.inspection import Refused, inspect
from remuda_image_store.records import Changed, Found, Image, Records, no_longer
from remuda_image_store.uploads import read_back

_log = logging.getLogger(__name__)

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
            # Whoever has changed it meanwhile decides what it is.
            with contextlib.suppress(Changed):
                await self._fail(found, refused.message)
            raise
        space = await asyncio.to_thread(self._content.blobs.space)
        if space is not None and space.free_bytes < found.record.image.file_bytes - committed:
            raise RemudaError(Reason.DISK_FULL, "the image store has no room left for this file")

    async def complete(self, image: ImageId) -> Found:
        """The ACTIVE image. Raises IMAGE_REFUSED (then the image is FAILED), DIGEST_MISMATCH for a wrong
        SHA-256 (the same), DISK_FULL, STATE_FORBIDS_ACTION.
        """
        task = self._running.get(image)
        if task is None:
            with detached():
                task = asyncio.create_task(self._import(image), name=f"import {image}")
            self._running[image] = task
            task.add_done_callback(lambda done: self._forget(image, done))
        return await asyncio.shield(task)

    def _forget(self, image: ImageId, task: asyncio.Task[Found]) -> None:
        self._running.pop(image, None)
        # Whoever waited has it; nobody may be left who did.
        if not task.cancelled() and task.exception() is not None:
            _log.info("import of %s failed: %s", image, task.exception())

    async def _import(self, image: ImageId) -> Found:
        async with self._turn:
            found = await self._records.by_id(image)
            if found is None:
                raise RemudaError(Reason.IMAGE_NOT_FOUND, f"image {image} does not exist")
            if found.state == Image.STATE_ACTIVE:
                return found
            if found.state not in TAKES_BYTES:
                raise no_longer(found, "UPLOADING")
            await self.admit(found, committed=found.record.image.file_bytes)
            self._check_scratch(found)
            work = Path(tempfile.mkdtemp(prefix=f"{image}.", dir=self._scratch))
            try:
                active = await self._work(found, work)
            except Changed as error:
                raise await self._why_changed(image) from error
            finally:
                await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
        await self._content.delete_parts(image)
        return active

    def _check_size(self, found: Found) -> None:
        size, most = found.record.image.file_bytes, self._scratch_bytes
        if found.record.image.format == Image.FORMAT_RAW:
            most = min(most, self._largest_bytes)
        if size > most:
            raise Refused(f"a file of {size} bytes is larger than the {most} allowed here")

    def _check_scratch(self, found: Found) -> None:
        if shutil.disk_usage(self._scratch).free < found.record.image.file_bytes:
            raise RemudaError(Reason.DISK_FULL, "the image store has no scratch room left for this file")

    async def _work(self, found: Found, work: Path) -> Found:
        try:
            raw, virtual_bytes = await self._to_raw(found, work)
        except RemudaError as error:
            if error.reason in (Reason.IMAGE_REFUSED, Reason.DIGEST_MISMATCH):
                await self._fail(found, error.message)
            raise
        chunked = await convert.to_chunks(raw, virtual_bytes, self._content)
        digest = await self._content.put_manifest(chunked.manifest)

        def pend(image: image_pb2.Image) -> None:
            image.state = Image.STATE_PENDING
            image.status_message = "its chunks are being verified"
            image.virtual_bytes = virtual_bytes
            image.manifest_digest = digest.hex()
            # An import that was killed on its way here has put some already, and cannot tell.
            image.stored_bytes = max(image.stored_bytes, chunked.new_bytes)

        # If it was removed meanwhile, nothing refers to what was put, and the sweeper takes it.
        pending = await self._records.change(found, pend)

        async def put_again(lacking: set[Digest]) -> None:
            await convert.put_again(raw, chunked.manifest, lacking, self._content)

        return await self._activation.activate(pending, chunked.manifest, put_again=put_again)

    async def _to_raw(self, found: Found, work: Path) -> tuple[Path, int]:
        image = found.record.image
        upload = (await self._records.upload(found.id)).record
        source = work / "file"
        sha256 = await convert.assemble(read_back(self._content, upload), source)
        if image.sha256 and image.sha256 != sha256:
            raise RemudaError(
                Reason.DIGEST_MISMATCH,
                "the SHA-256 of the file is not the one that was given",
                metadata={"given": image.sha256, "received": sha256},
            )
        inspected = await inspect(source, image.format, largest_bytes=self._largest_bytes)
        if not inspected.qcow2:
            return source, inspected.virtual_bytes
        raw = work / "disk"
        room = self._scratch_bytes - source.stat().st_size
        await convert.to_raw(source, raw, virtual_bytes=inspected.virtual_bytes, room_bytes=room)
        source.unlink()
        return raw, inspected.virtual_bytes

    async def _fail(self, found: Found, message: str) -> None:
        def fail(image: image_pb2.Image) -> None:
            image.state = Image.STATE_FAILED
            image.status_message = message

        removed = ops.delete(self._records.keys.upload(found.id))
        await self._records.change(found, fail, success=[removed])
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

"""remuda.image.v1.ImageService, the part that moves bytes; records are made and listed by the api."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import empty_pb2
from remuda.image.v1 import image_pb2, image_pb2_grpc
from remuda_core.errors import Reason, RemudaError, invalid_argument
from remuda_core.telemetry.metrics import Metrics

from remuda_image_store import download
from remuda_image_store.content import Content
from remuda_image_store.importing import TAKES_BYTES, Importer
from remuda_image_store.inspection import Refused
from remuda_image_store.raw_uploads import RawReceiver
from remuda_image_store.records import Found, Image, Records, UploadState, no_longer
from remuda_image_store.uploads import Receiver

# Of all uploads together, each some 12 MiB of memory: enough that the disk and all processors have work.
_CHUNKS_AT_ONCE = max(6, 2 * (os.cpu_count() or 2))

SERIALIZED = frozenset({"/remuda.image.v1.ImageService/DownloadImage"})
"""Rpcs whose answers are serialized already when they come from the handler."""


class Images(image_pb2_grpc.ImageServiceServicer):
    def __init__(self, records: Records, content: Content, importer: Importer, metrics: Metrics) -> None:
        self._records = records
        self._content = content
        self._importer = importer
        self._moved = metrics.image_bytes
        self._slots = asyncio.Semaphore(_CHUNKS_AT_ONCE)

    async def GetUpload(self, request: image_pb2.GetUploadRequest, context: object) -> image_pb2.Upload:
        found = await self._records.by_name(request.name)
        return image_pb2.Upload(
            name=found.name,
            committed_bytes=await self._committed(found),
            total_bytes=found.record.image.file_bytes,
        )

    async def UploadImage(
        self, request_iterator: AsyncIterator[image_pb2.UploadImageRequest], context: object
    ) -> image_pb2.UploadImageResponse:
        frames = aiter(request_iterator)
        first = await anext(frames, None)
        if first is None or not first.name:
            raise invalid_argument("name", "the first frame names the image")
        found = await self._records.by_name(first.name)
        if found.state == Image.STATE_ACTIVE and first.finish:
            # The answer to an earlier last frame was lost on its way.
            return _answer(found, found.record.image.file_bytes)
        if found.state not in TAKES_BYTES:
            raise no_longer(found, "UPLOADING")
        if found.record.operation_id:
            raise RemudaError(Reason.STATE_FORBIDS_ACTION, f"{found.name} is filled by an operation")
        async with self._receiver(found, await self._records.upload(found.id)) as receiver:
            before = receiver.committed_bytes
            await self._importer.admit(found, committed=before)
            try:
                finish = await _receive(receiver, first, frames)
            except Refused as refused:
                await self._importer.refuse(found, refused.message)
                raise
            finally:
                self._moved.labels("uploaded").inc(receiver.committed_bytes - before)
        if not finish:
            return _answer(found, receiver.committed_bytes)
        size = found.record.image.file_bytes
        if receiver.committed_bytes != size:
            raise invalid_argument("finish", f"{receiver.committed_bytes} of {size} bytes have come")
        return _answer(await self._importer.complete(found.id, receiver.sha256), size)

    def _receiver(self, found: Found, state: UploadState) -> Receiver | RawReceiver:
        if found.record.image.format == Image.FORMAT_RAW:
            return RawReceiver(self._records, self._content, found, state, self._slots)
        return Receiver(self._records, self._content, found, state)

    async def DownloadImage(
        self, request: image_pb2.DownloadImageRequest, context: object
    ) -> AsyncIterator[Any]:
        # Serialized: see SERIALIZED.
        found = await self._records.by_name(request.name)
        digest = found.manifest_digest
        if found.state != Image.STATE_ACTIVE or digest is None:
            raise no_longer(found, "ACTIVE")
        manifest = await self._content.manifest(digest)
        async for frame in download.frames(manifest, self._content, request.offset, request.format):
            self._moved.labels("downloaded").inc(frame.data_bytes)
            yield frame.serialized

    async def CreateImage(self, request: image_pb2.CreateImageRequest, context: object) -> Image:
        raise _at_the_api()

    async def GetImage(self, request: image_pb2.GetImageRequest, context: object) -> Image:
        raise _at_the_api()

    async def ListImages(
        self, request: image_pb2.ListImagesRequest, context: object
    ) -> image_pb2.ListImagesResponse:
        raise _at_the_api()

    async def UpdateImage(self, request: image_pb2.UpdateImageRequest, context: object) -> Image:
        raise _at_the_api()

    async def DeleteImage(self, request: image_pb2.DeleteImageRequest, context: object) -> empty_pb2.Empty:
        raise _at_the_api()

    async def _committed(self, found: Found) -> int:
        if found.state in TAKES_BYTES:
            return (await self._records.upload(found.id)).record.committed_bytes
        return found.record.image.file_bytes if found.state == Image.STATE_ACTIVE else 0


async def _receive(
    receiver: Receiver | RawReceiver,
    first: image_pb2.UploadImageRequest,
    frames: AsyncIterator[image_pb2.UploadImageRequest],
) -> bool:
    """Takes the frames until the stream or the file ends; whether the file is complete."""
    frame: image_pb2.UploadImageRequest | None = first
    while frame is not None:
        await receiver.take(frame)
        if frame.finish:
            break
        frame = await anext(frames, None)
    await receiver.flush()
    return frame is not None


def _answer(found: Found, committed: int) -> image_pb2.UploadImageResponse:
    return image_pb2.UploadImageResponse(image=found.public(), committed_bytes=committed)


def _at_the_api() -> RemudaError:
    return RemudaError(Reason.UNIMPLEMENTED, "records of images are made, read and marked at the api")

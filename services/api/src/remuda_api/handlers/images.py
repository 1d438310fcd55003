"""remuda.image.v1.ImageService: records here, bytes through to an image store."""

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpc.aio import ServicerContext
from remuda.image.v1 import image_pb2 as pb
from remuda.image.v1.image_pb2_grpc import ImageServiceServicer
from remuda.store.v1.image_pb2 import ImageRecord
from remuda_core import names
from remuda_core.errors import Reason, RemudaError, invalid_argument, not_found
from remuda_core.etcd.cache import Entry
from remuda_core.ids import OperationId
from remuda_core.rpc.context import caller

from remuda_api.admission.image_updates import ImageUpdates
from remuda_api.admission.images import ImageAdmission
from remuda_api.admission.requests import Call
from remuda_api.handlers.revisions import answered, fresh
from remuda_api.image_stores import ImageStores
from remuda_api.image_visibility import image_shown_to, readable_by, usable_by
from remuda_api.listing.pages import Pager, Query
from remuda_api.listing.tokens import query_digest
from remuda_api.reading import Reads
from remuda_api.store.caches import Caches
from remuda_api.store.images import image_message

Context = ServicerContext[Any, Any]
Row = Entry[ImageRecord]


class ImageHandler(ImageServiceServicer):
    def __init__(
        self,
        *,
        caches: Caches,
        reads: Reads,
        pager: Pager[Row],
        admission: ImageAdmission,
        updates: ImageUpdates,
        stores: ImageStores,
    ) -> None:
        self._caches = caches
        self._reads = reads
        self._pager = pager
        self._admission = admission
        self._updates = updates
        self._stores = stores

    async def CreateImage(self, request: pb.CreateImageRequest, context: Context) -> pb.Image:
        call = Call.of("CreateImage", request, principal=caller().principal)
        return answered(context, await self._admission.create(call, request))

    async def GetImage(self, request: pb.GetImageRequest, context: Context) -> pb.Image:
        await fresh(context, self._reads, self._caches.images)
        return image_shown_to(caller(), await self._readable(request.name))

    async def ListImages(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        await fresh(context, self._reads, self._caches.images)
        project, who = names.parse_project(request.parent), caller()

        def kept(row: Row) -> bool:
            if request.include_visible:
                return usable_by(project, row.value)
            return row.value.project == project

        query: Query[Row] = Query(
            prefix=self._caches.keys.images,
            page_size=request.page_size,
            page_token=request.page_token,
            digest=query_digest("images", request.parent, str(request.include_visible)),
            keep=kept,
        )
        page = await self._pager.page(query)
        return pb.ListImagesResponse(
            images=[image_shown_to(who, row) for row in page.rows],
            next_page_token=page.next_page_token,
        )

    async def UpdateImage(self, request: pb.UpdateImageRequest, context: Context) -> pb.Image:
        call = Call.of("UpdateImage", request, principal=caller().principal)
        return answered(context, await self._updates.update(call, request))

    async def DeleteImage(self, request: pb.DeleteImageRequest, context: Context) -> Empty:
        call = Call.of("DeleteImage", request, principal=caller().principal)
        return answered(context, await self._admission.delete(call, request))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.Upload:
        name = await self._of_a_client(request.name)
        return await self._stores.get_upload(pb.GetUploadRequest(name=name))

    async def UploadImage(
        self, request_iterator: AsyncIterator[Any], context: Context
    ) -> pb.UploadImageResponse:
        # The others are serialized: see FORWARDED.
        first: pb.UploadImageRequest | None = await anext(request_iterator, None)
        if first is None:
            raise invalid_argument("name", "the first frame names the image")
        first.name = await self._of_a_client(first.name)
        return await self._stores.upload(first, request_iterator)

    async def DownloadImage(self, request: pb.DownloadImageRequest, context: Context) -> AsyncIterator[Any]:
        # The store takes the gateway's word for it that the caller may read this image: etcd is asked, since
        # a cache that has lost its watch would go on sharing what was taken back.
        entry = await self._readable(request.name, newest=True)
        asked = pb.DownloadImageRequest()
        asked.CopyFrom(request)
        asked.name = image_message(entry).name
        async for frame in self._stores.download(asked):
            yield frame

    async def _readable(self, name: str, *, newest: bool = False) -> Row:
        """Raises IMAGE_NOT_FOUND, in the same words for what is not there and for what is not shared."""
        entry = await self._reads.image_entry(name, newest=newest)
        if not readable_by(caller(), entry.value):
            raise not_found(name)
        return entry

    async def _of_a_client(self, name: str) -> str:
        """The full name of an image that takes a client's bytes. Raises STATE_FORBIDS_ACTION."""
        entry = await self._reads.image_entry(name)
        if operation := entry.value.operation_id:
            raise RemudaError(
                Reason.STATE_FORBIDS_ACTION,
                f"{name} is a snapshot: the agent of its instance's host fills it",
                metadata={"operation": names.operation_name(OperationId(operation))},
            )
        return image_message(entry).name

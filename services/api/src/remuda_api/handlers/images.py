"""remuda.image.v1.ImageService: records here, bytes through to an image store."""

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpc.aio import ServicerContext
from remuda.image.v1 import image_pb2 as pb
from remuda.image.v1.image_pb2_grpc import ImageServiceServicer
from remuda.store.v1.image_pb2 import ImageRecord
from remuda_core import names
from remuda_core.errors import invalid_argument
from remuda_core.etcd.cache import Entry
from remuda_core.rpc.context import caller

from remuda_api.admission.images import ImageAdmission
from remuda_api.admission.requests import Call
from remuda_api.handlers.revisions import answered, fresh
from remuda_api.image_stores import ImageStores
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
        stores: ImageStores,
    ) -> None:
        self._caches = caches
        self._reads = reads
        self._pager = pager
        self._admission = admission
        self._stores = stores

    async def CreateImage(self, request: pb.CreateImageRequest, context: Context) -> pb.Image:
        call = Call.of("CreateImage", request, principal=caller().principal)
        return answered(context, await self._admission.create(call, request))

    async def GetImage(self, request: pb.GetImageRequest, context: Context) -> pb.Image:
        await fresh(context, self._reads, self._caches.images)
        return await self._reads.image(request.name)

    async def ListImages(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        await fresh(context, self._reads, self._caches.images)
        project = names.parse_project(request.parent)
        query: Query[Row] = Query(
            prefix=self._caches.keys.images,
            page_size=request.page_size,
            page_token=request.page_token,
            digest=query_digest("images", request.parent),
            keep=lambda row: row.value.project == project,
        )
        page = await self._pager.page(query)
        return pb.ListImagesResponse(
            images=[image_message(row) for row in page.rows], next_page_token=page.next_page_token
        )

    async def DeleteImage(self, request: pb.DeleteImageRequest, context: Context) -> Empty:
        call = Call.of("DeleteImage", request, principal=caller().principal)
        return answered(context, await self._admission.delete(call, request))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.Upload:
        image = await self._reads.image(request.name)
        return await self._stores.get_upload(pb.GetUploadRequest(name=image.name))

    async def UploadImage(
        self, request_iterator: AsyncIterator[pb.UploadImageRequest], context: Context
    ) -> pb.UploadImageResponse:
        first = await anext(request_iterator, None)
        if first is None:
            raise invalid_argument("name", "the first frame names the image")
        image = await self._reads.image(first.name)
        first.name = image.name
        return await self._stores.upload(first, request_iterator)

    async def DownloadImage(
        self, request: pb.DownloadImageRequest, context: Context
    ) -> AsyncIterator[pb.DownloadImageResponse]:
        image = await self._reads.image(request.name)
        asked = pb.DownloadImageRequest(name=image.name, offset=request.offset, format=request.format)
        async for frame in self._stores.download(asked):
            yield frame

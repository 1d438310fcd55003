"""remuda.compute.v1.FlavorService."""

from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpc.aio import ServicerContext
from remuda.compute.v1 import flavor_pb2 as pb
from remuda.compute.v1.flavor_pb2_grpc import FlavorServiceServicer
from remuda.store.v1.host_pb2 import FlavorRecord
from remuda_core.etcd.cache import Entry
from remuda_core.rpc.context import caller

from remuda_api.admission.flavors import FlavorAdmission
from remuda_api.admission.requests import Call
from remuda_api.handlers.revisions import answered, fresh
from remuda_api.listing.pages import Pager, Query
from remuda_api.listing.tokens import query_digest
from remuda_api.reading import Reads
from remuda_api.store.caches import Caches
from remuda_api.store.flavors import flavor_message

Context = ServicerContext[Any, Any]


class FlavorHandler(FlavorServiceServicer):
    def __init__(
        self, caches: Caches, reads: Reads, pager: Pager[Entry[FlavorRecord]], admission: FlavorAdmission
    ) -> None:
        self._caches = caches
        self._reads = reads
        self._pager = pager
        self._admission = admission

    async def CreateFlavor(self, request: pb.CreateFlavorRequest, context: Context) -> pb.Flavor:
        call = Call.of("CreateFlavor", request, principal=caller().principal)
        return answered(context, await self._admission.create(call, request))

    async def GetFlavor(self, request: pb.GetFlavorRequest, context: Context) -> pb.Flavor:
        await fresh(context, self._reads, self._caches.flavors)
        return await self._reads.flavor(request.name)

    async def ListFlavors(self, request: pb.ListFlavorsRequest, context: Context) -> pb.ListFlavorsResponse:
        await fresh(context, self._reads, self._caches.flavors)
        query: Query[Entry[FlavorRecord]] = Query(
            prefix=self._caches.keys.flavors,
            page_size=request.page_size,
            page_token=request.page_token,
            digest=query_digest("flavors"),
        )
        page = await self._pager.page(query)
        return pb.ListFlavorsResponse(
            flavors=[flavor_message(row) for row in page.rows], next_page_token=page.next_page_token
        )

    async def DeleteFlavor(self, request: pb.DeleteFlavorRequest, context: Context) -> Empty:
        call = Call.of("DeleteFlavor", request, principal=caller().principal)
        return answered(context, await self._admission.delete(call, request))

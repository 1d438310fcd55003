"""remuda.compute.v1.NetworkService."""

from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpc.aio import ServicerContext
from remuda.compute.v1 import network_pb2 as pb
from remuda.compute.v1.network_pb2_grpc import NetworkServiceServicer
from remuda.store.v1.host_pb2 import NetworkRecord
from remuda_core.etcd.cache import Entry
from remuda_core.rpc.context import caller

from remuda_api.admission.networks import NetworkAdmission
from remuda_api.admission.requests import Call
from remuda_api.handlers.revisions import answered, fresh
from remuda_api.listing.pages import Pager, Query
from remuda_api.listing.tokens import query_digest
from remuda_api.reading import Reads
from remuda_api.store.caches import Caches

Context = ServicerContext[Any, Any]


class NetworkHandler(NetworkServiceServicer):
    def __init__(
        self, caches: Caches, reads: Reads, pager: Pager[Entry[NetworkRecord]], admission: NetworkAdmission
    ) -> None:
        self._caches = caches
        self._reads = reads
        self._pager = pager
        self._admission = admission

    async def CreateNetwork(self, request: pb.CreateNetworkRequest, context: Context) -> pb.Network:
        call = Call.of("CreateNetwork", request, principal=caller().principal)
        return answered(context, await self._admission.create(call, request))

    async def GetNetwork(self, request: pb.GetNetworkRequest, context: Context) -> pb.Network:
        await fresh(context, self._reads, self._caches.networks, self._caches.ports)
        return await self._reads.network(request.name)

    async def ListNetworks(
        self, request: pb.ListNetworksRequest, context: Context
    ) -> pb.ListNetworksResponse:
        await fresh(context, self._reads, self._caches.networks, self._caches.ports)
        query: Query[Entry[NetworkRecord]] = Query(
            prefix=self._caches.keys.networks,
            page_size=request.page_size,
            page_token=request.page_token,
            digest=query_digest("networks"),
        )
        page = await self._pager.page(query)
        return pb.ListNetworksResponse(
            networks=[self._reads.network_message(row) for row in page.rows],
            next_page_token=page.next_page_token,
        )

    async def DeleteNetwork(self, request: pb.DeleteNetworkRequest, context: Context) -> Empty:
        call = Call.of("DeleteNetwork", request, principal=caller().principal)
        return answered(context, await self._admission.delete(call, request))

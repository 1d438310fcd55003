"""remuda.compute.v1.HostService."""

from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpc.aio import ServicerContext
from remuda.compute.v1 import host_pb2 as pb
from remuda.compute.v1.host_pb2_grpc import HostServiceServicer
from remuda.compute.v1.operation_pb2 import PlacementExplanation
from remuda.store.v1.host_pb2 import HostRecord
from remuda_core.etcd.cache import Entry
from remuda_core.names import host_name
from remuda_core.rpc.context import caller

from remuda_api.admission.hosts import HostAdmission
from remuda_api.admission.requests import Call
from remuda_api.admission.resolving import Resolver
from remuda_api.handlers.revisions import answered, fresh
from remuda_api.leader import LeaderLink
from remuda_api.listing.pages import Pager, Query
from remuda_api.listing.tokens import query_digest
from remuda_api.reading import Reads
from remuda_api.store.caches import Caches

Context = ServicerContext[Any, Any]


class HostHandler(HostServiceServicer):
    def __init__(
        self,
        *,
        caches: Caches,
        reads: Reads,
        pager: Pager[Entry[HostRecord]],
        admission: HostAdmission,
        resolver: Resolver,
        leader: LeaderLink,
    ) -> None:
        self._caches = caches
        self._reads = reads
        self._pager = pager
        self._admission = admission
        self._resolver = resolver
        self._leader = leader

    async def CreateHost(self, request: pb.CreateHostRequest, context: Context) -> pb.CreateHostResponse:
        call = Call.of("CreateHost", request, principal=caller().principal)
        return answered(context, await self._admission.create(call, request))

    async def GetHost(self, request: pb.GetHostRequest, context: Context) -> pb.Host:
        await fresh(context, self._reads, self._caches.hosts, self._caches.host_statuses)
        return await self._reads.host(request.name)

    async def ListHosts(self, request: pb.ListHostsRequest, context: Context) -> pb.ListHostsResponse:
        await fresh(context, self._reads, self._caches.hosts, self._caches.host_statuses)
        query: Query[Entry[HostRecord]] = Query(
            prefix=self._caches.keys.hosts,
            page_size=request.page_size,
            page_token=request.page_token,
            digest=query_digest("hosts"),
        )
        page = await self._pager.page(query)
        return pb.ListHostsResponse(
            hosts=[self._reads.host_message(row) for row in page.rows], next_page_token=page.next_page_token
        )

    async def DeleteHost(self, request: pb.DeleteHostRequest, context: Context) -> Empty:
        call = Call.of("DeleteHost", request, principal=caller().principal)
        return answered(context, await self._admission.delete(call, request))

    async def CordonHost(self, request: pb.CordonHostRequest, context: Context) -> pb.Host:
        call = Call.of("CordonHost", request, principal=caller().principal)
        return answered(context, await self._admission.set_cordon(call, request, cordoned=True))

    async def UncordonHost(self, request: pb.UncordonHostRequest, context: Context) -> pb.Host:
        call = Call.of("UncordonHost", request, principal=caller().principal)
        return answered(context, await self._admission.set_cordon(call, request, cordoned=False))

    async def SweepHost(self, request: pb.SweepHostRequest, context: Context) -> pb.SweepHostResponse:
        call = Call.of("SweepHost", request, principal=caller().principal)
        return answered(context, await self._admission.sweep(call, request, self._leader.sweep_host))

    async def ExplainPlacement(
        self, request: pb.ExplainPlacementRequest, context: Context
    ) -> PlacementExplanation:
        await self._reads.flavor(request.flavor)
        for network in request.networks:
            await self._reads.network(network)
        asked = pb.ExplainPlacementRequest()
        asked.CopyFrom(request)
        if request.host:
            asked.host = host_name(await self._resolver.host(request.host, field="host"))
        return await self._leader.explain(asked)

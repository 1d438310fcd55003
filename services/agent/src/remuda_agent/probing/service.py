"""ProbeService: translates the leader's questions into probes, and their results into answers."""

import math
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1 import probe_pb2 as pb
from remuda.agent.v1 import probe_pb2_grpc
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId
from remuda_core.rpc.context import timeout_for

from remuda_agent.hypervisor import Hypervisor
from remuda_agent.probing.assessing import GuestAssessor
from remuda_agent.probing.connecting import Connector
from remuda_agent.probing.describing import GuestDescriber
from remuda_agent.probing.listening import Listener
from remuda_agent.probing.nonces import NonceFiles
from remuda_agent.probing.resolving import Resolver

PATIENCE_SECONDS = 5.0
"""For requests that name none."""
MEASURE_SECONDS = 1


class ProbeService(probe_pb2_grpc.ProbeServiceServicer):
    """Only the leader calls it (the policy table says so); which one does not matter, nothing is changed."""

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        describer: GuestDescriber,
        assessor: GuestAssessor,
        resolver: Resolver,
        connector: Connector,
        listener: Listener,
        nonces: NonceFiles,
    ) -> None:
        self._hypervisor = hypervisor
        self._describer = describer
        self._assessor = assessor
        self._resolver = resolver
        self._connector = connector
        self._listener = listener
        self._nonces = nonces

    async def DescribeGuest(
        self,
        request: pb.DescribeGuestRequest,
        context: "grpc.aio.ServicerContext[pb.DescribeGuestRequest, pb.DescribeGuestResponse]",
    ) -> pb.DescribeGuestResponse:
        return pb.DescribeGuestResponse(guest=await self._describer.describe(InstanceId(request.instance_id)))

    async def AssessGuest(
        self,
        request: pb.AssessGuestRequest,
        context: "grpc.aio.ServicerContext[pb.AssessGuestRequest, pb.AssessGuestResponse]",
    ) -> pb.AssessGuestResponse:
        return await self._assessor.assess(request)

    async def ResolveHost(
        self,
        request: pb.ResolveHostRequest,
        context: "grpc.aio.ServicerContext[pb.ResolveHostRequest, pb.ResolveHostResponse]",
    ) -> pb.ResolveHostResponse:
        return await self._resolver.resolve(request.hostname)

    async def Listen(
        self,
        request: pb.ListenRequest,
        context: "grpc.aio.ServicerContext[pb.ListenRequest, pb.ListenResponse]",
    ) -> AsyncIterator[pb.ListenResponse]:
        listening = self._listener.listen(request.nonce, patience=_seconds(request.patience))
        # Closed here and now when the caller goes away, not when the garbage is collected.
        async with aclosing(listening) as answers:
            async for answer in answers:
                yield answer

    async def Connect(
        self,
        request: pb.ConnectRequest,
        context: "grpc.aio.ServicerContext[pb.ConnectRequest, pb.ConnectResponse]",
    ) -> pb.ConnectResponse:
        patience = timeout_for(_seconds(request.patience))
        return await self._connector.connect(request.address, request.port, request.nonce, patience=patience)

    async def OpenLibvirt(
        self,
        request: pb.OpenLibvirtRequest,
        context: "grpc.aio.ServicerContext[pb.OpenLibvirtRequest, pb.OpenLibvirtResponse]",
    ) -> pb.OpenLibvirtResponse:
        try:
            hostname = await self._hypervisor.open_peer(
                request.hostname,
                transport=request.transport,
                patience=timeout_for(_seconds(request.patience)),
            )
        except RemudaError as error:
            if error.reason is not Reason.HYPERVISOR_ERROR:
                raise
            return pb.OpenLibvirtResponse(error=error.message)
        return pb.OpenLibvirtResponse(hostname=hostname)

    async def WriteNonce(
        self,
        request: pb.WriteNonceRequest,
        context: "grpc.aio.ServicerContext[pb.WriteNonceRequest, pb.WriteNonceResponse]",
    ) -> pb.WriteNonceResponse:
        uid = await self._nonces.write(request.pool, request.name, request.content)
        return pb.WriteNonceResponse(pool_uid=uid)

    async def ReadNonce(
        self,
        request: pb.ReadNonceRequest,
        context: "grpc.aio.ServicerContext[pb.ReadNonceRequest, pb.ReadNonceResponse]",
    ) -> pb.ReadNonceResponse:
        return pb.ReadNonceResponse(content=await self._nonces.read(request.pool, request.name))

    async def RemoveNonce(
        self,
        request: pb.RemoveNonceRequest,
        context: "grpc.aio.ServicerContext[pb.RemoveNonceRequest, pb.RemoveNonceResponse]",
    ) -> pb.RemoveNonceResponse:
        await self._nonces.remove(request.pool, request.name)
        return pb.RemoveNonceResponse()

    async def MeasureDirtyRate(
        self,
        request: pb.MeasureDirtyRateRequest,
        context: "grpc.aio.ServicerContext[pb.MeasureDirtyRateRequest, pb.MeasureDirtyRateResponse]",
    ) -> pb.MeasureDirtyRateResponse:
        # libvirt counts in whole seconds.
        period = math.ceil(_seconds(request.period, default=MEASURE_SECONDS))
        rate = await self._hypervisor.measure_dirty_rate(InstanceId(request.instance_id), seconds=period)
        return pb.MeasureDirtyRateResponse(dirty_bytes_per_second=rate)


def _seconds(duration: Duration, *, default: float = PATIENCE_SECONDS) -> float:
    """Zero stands for a field that was not set."""
    return duration.ToNanoseconds() / 1e9 or default

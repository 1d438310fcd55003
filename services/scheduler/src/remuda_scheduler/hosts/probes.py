"""Probes of preflight: calls to the agents' ProbeService, over the channels that orders go through."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import grpc
from remuda.agent.v1 import probe_pb2 as pb
from remuda.agent.v1.probe_pb2_grpc import ProbeServiceStub
from remuda_core.ids import HostId

from remuda_scheduler.hosts.agents import meaning

if TYPE_CHECKING:
    from remuda.agent.v1.probe_pb2_grpc import ProbeServiceAsyncStub

A = TypeVar("A")

RECONNECT_SECONDS = 2.5
"""A channel that saw a host go tries again every 2 s at the latest, and refuses all calls in between: a host
that is back would be told unreachable.
"""
TRANSIENT_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE


class HostProbes:
    """Implements preflight.ports.ProbeAgents. `seconds` is the deadline of the rpc itself."""

    def __init__(self, channel: Callable[[HostId], grpc.aio.Channel]) -> None:
        """`channel` raises HOST_UNREACHABLE for a host that never attached."""
        self._channel = channel

    async def describe_guest(
        self, host: HostId, request: pb.DescribeGuestRequest, seconds: float
    ) -> pb.DescribeGuestResponse:
        return await _answer(host, (await self._stub(host)).DescribeGuest(request, timeout=seconds))

    async def assess_guest(
        self, host: HostId, request: pb.AssessGuestRequest, seconds: float
    ) -> pb.AssessGuestResponse:
        return await _answer(host, (await self._stub(host)).AssessGuest(request, timeout=seconds))

    async def resolve_host(
        self, host: HostId, request: pb.ResolveHostRequest, seconds: float
    ) -> pb.ResolveHostResponse:
        return await _answer(host, (await self._stub(host)).ResolveHost(request, timeout=seconds))

    async def listen(
        self, host: HostId, request: pb.ListenRequest, seconds: float
    ) -> AsyncGenerator[pb.ListenResponse, None]:
        call = (await self._stub(host)).Listen(request, timeout=seconds)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as failure:
            raise meaning(host, failure) from failure
        finally:
            call.cancel()

    async def connect(self, host: HostId, request: pb.ConnectRequest, seconds: float) -> pb.ConnectResponse:
        return await _answer(host, (await self._stub(host)).Connect(request, timeout=seconds))

    async def open_libvirt(
        self, host: HostId, request: pb.OpenLibvirtRequest, seconds: float
    ) -> pb.OpenLibvirtResponse:
        return await _answer(host, (await self._stub(host)).OpenLibvirt(request, timeout=seconds))

    async def write_nonce(
        self, host: HostId, request: pb.WriteNonceRequest, seconds: float
    ) -> pb.WriteNonceResponse:
        return await _answer(host, (await self._stub(host)).WriteNonce(request, timeout=seconds))

    async def read_nonce(
        self, host: HostId, request: pb.ReadNonceRequest, seconds: float
    ) -> pb.ReadNonceResponse:
        return await _answer(host, (await self._stub(host)).ReadNonce(request, timeout=seconds))

    async def remove_nonce(
        self, host: HostId, request: pb.RemoveNonceRequest, seconds: float
    ) -> pb.RemoveNonceResponse:
        return await _answer(host, (await self._stub(host)).RemoveNonce(request, timeout=seconds))

    async def measure_dirty_rate(
        self, host: HostId, request: pb.MeasureDirtyRateRequest, seconds: float
    ) -> pb.MeasureDirtyRateResponse:
        return await _answer(host, (await self._stub(host)).MeasureDirtyRate(request, timeout=seconds))

    async def _stub(self, host: HostId) -> "ProbeServiceAsyncStub":
        channel = self._channel(host)
        with suppress(TimeoutError):
            async with asyncio.timeout(RECONNECT_SECONDS):
                while (state := channel.get_state(try_to_connect=True)) is TRANSIENT_FAILURE:
                    await channel.wait_for_state_change(state)
        return ProbeServiceStub(channel)


async def _answer(host: HostId, call: Awaitable[A]) -> A:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise meaning(host, failure) from failure

"""Probes go over channels that have seen a host go and come back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from remuda.agent.v1 import probe_pb2 as pb
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId
from remuda_core.rpc.channel import open_channel
from remuda_scheduler.hosts.probes import RECONNECT_SECONDS, HostProbes

HOST = HostId("host")
REQUEST = pb.ResolveHostRequest(hostname="beta")


async def resolve(
    request: pb.ResolveHostRequest,
    context: grpc.aio.ServicerContext[pb.ResolveHostRequest, pb.ResolveHostResponse],
) -> pb.ResolveHostResponse:
    return pb.ResolveHostResponse(addresses=["192.0.2.2"])


@asynccontextmanager
async def serving(port: int = 0) -> AsyncIterator[int]:
    """An agent that can only resolve names."""
    method = grpc.unary_unary_rpc_method_handler(
        resolve,
        request_deserializer=pb.ResolveHostRequest.FromString,
        response_serializer=pb.ResolveHostResponse.SerializeToString,
    )
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("remuda.agent.v1.ProbeService", {"ResolveHost": method})]
    )
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


async def test_a_host_that_is_just_back_is_not_called_unreachable() -> None:
    """Its channel pauses between two tries, for longer and longer."""
    async with serving() as port:
        channel = open_channel(f"127.0.0.1:{port}", None)
        probes = HostProbes(lambda _: channel)
        await probes.resolve_host(HOST, REQUEST, 5.0)
    async with channel:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(RemudaError) as caught:
                await probes.resolve_host(HOST, REQUEST, 5.0)
            assert caught.value.reason is Reason.HOST_UNREACHABLE
            assert time.monotonic() - began < RECONNECT_SECONDS + 20.0, (
                "a host that is gone is not waited for"
            )
        async with serving(port):
            found = await probes.resolve_host(HOST, REQUEST, 5.0)
            assert list(found.addresses) == ["192.0.2.2"]

"""Whether a base image could be fetched: real gRPC servers that serve, do not, or are not there."""

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from remuda_agent.probing.image_stores import SERVICE, ImageStores
from remuda_core.rpc.channel import open_channel
from remuda_core.testing.etcd import free_ports
from remuda_core.testing.premise import PremiseLost, set_up_again

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def store(status: Any) -> AsyncIterator[str]:
    server = grpc.aio.server()
    health = health_aio.HealthServicer()
    await health.set(SERVICE, status)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def problem(*endpoints: str) -> str:
    channels = {endpoint: open_channel(endpoint, None) for endpoint in endpoints}
    try:
        return await ImageStores(channels).problem()
    finally:
        for channel in channels.values():
            await channel.close()


@set_up_again
async def test_one_store_that_serves_is_enough_and_the_silent_one_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with store(SERVING) as serving:
            started = time.monotonic()
            assert await problem(f"127.0.0.1:{silent.getsockname()[1]}", serving) == ""
            if (took := time.monotonic() - started) >= 2.5:
                raise PremiseLost(f"it took {took:.1f} s, if only for want of processors")


async def test_what_each_store_said_is_told_when_none_serves() -> None:
    [nobody] = free_ports(1)
    async with store(NOT_SERVING) as draining:
        said = await problem(draining, f"127.0.0.1:{nobody}")
    assert f"{draining}: NOT_SERVING" in said
    assert f"127.0.0.1:{nobody}: " in said


async def test_without_stores_there_is_nothing_to_fetch() -> None:
    assert await problem() == ""

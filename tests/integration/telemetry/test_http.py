"""What operators read over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from remuda_core.telemetry.http import TelemetryServer, telemetry_server
from remuda_core.telemetry.metrics import Metrics

trouble: list[str] = []


@pytest.fixture
async def server() -> AsyncIterator[TelemetryServer]:
    async def targets() -> object:
        return [{"targets": ["10.77.0.1:9464"]}]

    async def broken() -> object:
        raise KeyError("secret")

    metrics = Metrics()
    metrics.leader.set(1)
    trouble.clear()
    async with telemetry_server(
        "127.0.0.1:0",
        metrics,
        healthy=lambda: "; ".join(trouble),
        routes={"/sd/targets": targets, "/broken": broken},
    ) as running:
        yield running


async def ask(server: TelemetryServer, data: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


async def get(server: TelemetryServer, path: str) -> tuple[int, bytes]:
    return await ask(server, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


async def test_metrics_are_what_prometheus_scrapes(server: TelemetryServer) -> None:
    code, body = await get(server, "/metrics?x=1")
    assert code == 200
    assert b"\nremuda_leader 1.0\n" in body


async def test_health_says_what_is_wrong(server: TelemetryServer) -> None:
    assert await get(server, "/healthz") == (200, b"ok\n")
    trouble.append("the cache does not follow etcd")
    assert await get(server, "/healthz") == (503, b"the cache does not follow etcd\n")


async def test_a_services_own_route_is_json(server: TelemetryServer) -> None:
    code, body = await get(server, "/sd/targets")
    assert (code, json.loads(body)) == (200, [{"targets": ["10.77.0.1:9464"]}])


async def test_a_route_that_fails_shows_none_of_its_words(server: TelemetryServer) -> None:
    assert await get(server, "/broken") == (500, b"failed\n")


async def test_anything_else_is_not_found_or_refused(server: TelemetryServer) -> None:
    assert (await get(server, "/etc/passwd"))[0] == 404
    assert (await ask(server, b"POST /metrics HTTP/1.1\r\n\r\n"))[0] == 405
    assert await ask(server, b"HEAD /healthz HTTP/1.1\r\n\r\n") == (200, b"")
    assert await ask(server, b"nonsense\r\n\r\n") == (0, b"")
    assert (await get(server, "/healthz"))[0] == 200

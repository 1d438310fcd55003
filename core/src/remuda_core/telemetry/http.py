"""A small HTTP/1.1 server for what operators read: /metrics, /healthz, and a service's own JSON routes.

Plain HTTP for a management network or loopback: it only answers GET, and shows nothing that changes anything.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

import structlog

from remuda_core.telemetry.metrics import CONTENT_TYPE, Metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

JsonRoute = Callable[[], Awaitable[object]]
Healthy = Callable[[], str]
"""Empty: healthy; otherwise one sentence that says what is wrong."""

_READ_SECONDS = 5.0
_MAX_HEADERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryServer:
    """While it runs."""

    host: str
    port: int


@asynccontextmanager
async def telemetry_server(
    listen: str,
    metrics: Metrics,
    *,
    healthy: Healthy = lambda: "",
    routes: Mapping[str, JsonRoute] | None = None,
    refresh: Callable[[], None] = lambda: None,
) -> AsyncIterator[TelemetryServer]:
    """`listen` is host:port, port 0 for any. `routes`: path -> what is answered as JSON. `refresh` is called
    before the metrics are shown, for gauges that are counted when somebody asks.
    """

    async def answer(path: str) -> tuple[HTTPStatus, str, bytes]:
        if path == "/metrics":
            refresh()
            return HTTPStatus.OK, CONTENT_TYPE, metrics.render()
        if path == "/healthz":
            trouble = healthy()
            status = HTTPStatus.SERVICE_UNAVAILABLE if trouble else HTTPStatus.OK
            return status, "text/plain; charset=utf-8", f"{trouble or 'ok'}\n".encode()
        if routes is not None and path in routes:
            return HTTPStatus.OK, "application/json", json.dumps(await routes[path]()).encode()
        return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"not found\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A scraper that went away is its own business.
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            async with asyncio.timeout(_READ_SECONDS):
                method, path = await _request(reader)
            if method not in {"GET", "HEAD"}:
                reply = (HTTPStatus.METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", b"only GET\n")
            else:
                try:
                    reply = await answer(path)
                except Exception:
                    log.exception("a telemetry route failed", path=path)
                    reply = (HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", b"failed\n")
            writer.write(_response(*reply, head=method == "HEAD"))
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    host, _, port = listen.rpartition(":")
    server = await asyncio.start_server(serve, host.removeprefix("[").removesuffix("]"), int(port))
    try:
        bound_host, bound_port = server.sockets[0].getsockname()[:2]
        yield TelemetryServer(host=bound_host, port=bound_port)
    finally:
        server.close()
        await server.wait_closed()


async def _request(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Method and path of one request. Raises ValueError when it is not HTTP."""
    method, target, _version = (await reader.readuntil(b"\n")).decode("latin-1").split()
    for _ in range(_MAX_HEADERS):
        if not (await reader.readuntil(b"\n")).strip():
            return method, target.partition("?")[0]
    raise ValueError("too many header lines")


def _response(status: HTTPStatus, kind: str, body: bytes, *, head: bool) -> bytes:
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode("latin-1") + (b"" if head else body)

"""A one-shot listener on a port that a migration could use: the target's half of the transport probe."""

from __future__ import annotations

import asyncio
import errno
import hmac
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from remuda.agent.v1 import probe_pb2 as pb
from remuda_core.errors import Reason, RemudaError

MOST_LISTENERS = 16
"""At a time: the range is the migrations'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationPorts:
    """``address`` empty: every address of the host; ``name`` is what others are told then."""

    address: str
    name: str
    first: int
    last: int


class Listener:
    """Opens nothing before it is asked to, and closes with the call, however that ends."""

    def __init__(self, ports: MigrationPorts) -> None:
        self._ports = ports
        self._open = 0

    async def listen(self, nonce: bytes, *, patience: float) -> AsyncGenerator[pb.ListenResponse, None]:
        """The port, then whether the nonce came in within ``patience`` seconds. Connections that say
        something else are closed and not counted: a port scanner must not end a probe.

        Raises STEP_FAILED when no port of the range is free or the address is not this host's.
        """
        if self._open >= MOST_LISTENERS:
            raise RemudaError(Reason.UNAVAILABLE, f"{self._open} probes listen already")
        self._open += 1
        heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        try:
            async with self._serving(nonce, heard) as port:
                yield pb.ListenResponse(address=self._ports.address or self._ports.name, port=port)
                with suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await asyncio.shield(heard)
            yield pb.ListenResponse(heard=heard.done(), peer=heard.result() if heard.done() else "")
        finally:
            heard.cancel()
            self._open -= 1

    @asynccontextmanager
    async def _serving(self, nonce: bytes, heard: asyncio.Future[str]) -> AsyncIterator[int]:
        visits: set[asyncio.Task[None]] = set()

        async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            visits.add(task)
            try:
                await _hear(reader, writer, nonce, heard)
            finally:
                visits.discard(task)
                writer.close()

        server = await self._bind(visit)
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            server.close()
            for task in tuple(visits):
                task.cancel()
            await asyncio.gather(*visits, return_exceptions=True)

    async def _bind(self, visit: asyncio.streams._ClientConnectedCallback) -> asyncio.Server:
        """From the end of the range: libvirt takes ports from its beginning."""
        ports = self._ports
        for port in range(ports.last, ports.first - 1, -1):
            try:
                return await asyncio.start_server(visit, ports.address or None, port, limit=1024, backlog=8)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    where = ports.address or "any address"
                    words = error.strerror or str(error)
                    raise RemudaError(Reason.STEP_FAILED, f"cannot listen on {where}: {words}") from error
        raise RemudaError(
            Reason.STEP_FAILED, f"every port of the migration range {ports.first}-{ports.last} is taken"
        )


async def _hear(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    nonce: bytes,
    heard: asyncio.Future[str],
) -> None:
    try:
        said = await reader.readexactly(len(nonce))
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    if hmac.compare_digest(said, nonce) and not heard.done():
        host, port, *_ = writer.get_extra_info("peername")
        heard.set_result(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

"""A network between a client and a server that a test can cut, or make silent."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 1 << 16


class TcpProxy:
    """Forwards connections to a target. `cut` refuses and resets, `freeze` swallows without a word."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._requests = asyncio.Event()
        self._answers = asyncio.Event()
        self._requests.set()
        self._answers.set()
        self.last_request_at = 0.0
        """time.monotonic() when a client last sent something."""

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """How many stand now."""
        return len(self._connections)

    async def restore(self) -> None:
        """Listen and forward; what `freeze` held back on connections that still stand is delivered."""
        self._requests.set()
        self._answers.set()
        if self._server is None:
            # reuse_address (asyncio's default) lets the same port be taken again after a cut.
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """End all connections, refuse new ones."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def freeze(self) -> None:
        """Connections stay open, and nothing passes: the peer cannot tell it from a dead network."""
        self._requests.clear()
        self._answers.clear()

    def freeze_answers(self) -> None:
        """What the client sends still arrives; nothing comes back."""
        self._answers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError):
                await self._forward(reader, writer)
        except asyncio.CancelledError:
            # By `cut`: this connection's end, nobody waits for the task.
            pass
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection(*self._target)
        pumps = {
            asyncio.create_task(self._send(reader, target_writer)),
            asyncio.create_task(self._answer(target_reader, writer)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            target_writer.transport.abort()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            self.last_request_at = time.monotonic()
            await self._requests.wait()
            writer.write(data)
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._answers.wait()
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def tcp_proxy(endpoint: str) -> AsyncIterator[TcpProxy]:
    """A proxy to `endpoint` (host:port), on a port of its own."""
    host, _, port = endpoint.rpartition(":")
    proxy = TcpProxy(host, int(port))
    await proxy.restore()
    try:
        yield proxy
    finally:
        await proxy.cut()

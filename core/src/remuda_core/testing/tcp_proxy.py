"""A network between a client and a server that a test can cut, make silent, or let only so much through."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 1 << 16


class _Gate:
    """One direction, of all connections."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()
        self._left = math.inf
        self.passed = 0
        """Bytes."""
        self.open()

    @property
    def is_shut(self) -> bool:
        return not self._is_open.is_set()

    def open(self) -> None:
        self._left = math.inf
        self._is_open.set()

    def shut(self, *, after: float = 0) -> None:
        self._left = after
        if not after:
            self._is_open.clear()

    async def passing(self, length: int) -> None:
        if length > self._left:
            self._is_open.clear()
        await self._is_open.wait()
        self._left -= length
        self.passed += length


class TcpProxy:
    """Forwards connections to a target. `cut` refuses and resets, `freeze` swallows without a word."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._requests = _Gate()
        self._answers = _Gate()
        self.last_request_at = 0.0
        """time.monotonic() when a client last sent something."""

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """How many stand now."""
        return len(self._connections)

    @property
    def request_bytes(self) -> int:
        """That have come through to the target, in all."""
        return self._requests.passed

    @property
    def holds_requests(self) -> bool:
        """Whether what `hold_requests` lets through is used up."""
        return self._requests.is_shut

    @property
    def answer_bytes(self) -> int:
        return self._answers.passed

    async def restore(self) -> None:
        """Listen and forward; what `freeze` held back on connections that still stand is delivered."""
        self._requests.open()
        self._answers.open()
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
        self._requests.shut()
        self._answers.shut()

    def freeze_answers(self) -> None:
        """What the client sends still arrives; nothing comes back."""
        self._answers.shut()

    def hold_requests(self, *, after_bytes: int) -> None:
        """At most so many more reach the target: what needs more of them cannot be over before `restore`."""
        self._requests.shut(after=after_bytes)

    def hold_answers(self, *, after_bytes: int) -> None:
        """The same for what comes back."""
        self._answers.shut(after=after_bytes)

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
            await self._requests.passing(len(data))
            writer.write(data)
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._answers.passing(len(data))
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

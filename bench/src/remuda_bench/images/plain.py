"""The plain stream: bytes over gRPC with the same TLS and the same hops, and nothing else.

client -> relay -> sink, as client -> api -> image store. The sink takes the SHA-256 of what arrives, or sends
a file. No deadlines, checks, policy or metrics; frames of a mebibyte, as ours. Run as a process:

    python -m remuda_bench.images.plain CA CERT KEY [host:port of the next hop]

It prints its port.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import uvloop
from google.protobuf.wrappers_pb2 import BytesValue
from remuda_core.rpc.channel import MAX_MESSAGE_BYTES
from remuda_core.rpc.tls import Tls, channel_credentials, server_credentials

SERVICE = "remuda.bench.Plain"
FRAME_BYTES = 1 << 20
_UP, _DOWN = f"/{SERVICE}/Up", f"/{SERVICE}/Down"
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)
_CODECS: dict[str, Any] = {
    "request_serializer": BytesValue.SerializeToString,
    "response_deserializer": BytesValue.FromString,
}


class Client:
    """Blocking, as the CLI's."""

    def __init__(self, target: str, tls: Tls) -> None:
        self._channel = grpc.secure_channel(target, channel_credentials(tls), options=_OPTIONS)
        self._up = self._channel.stream_unary(_UP, **_CODECS)
        self._down = self._channel.unary_stream(_DOWN, **_CODECS)

    def close(self) -> None:
        self._channel.close()

    def send(self, file: Path) -> str:
        """SHA-256 as the other end has it, lower-case hex."""
        return str(self._up(_frames(file)).value.decode())

    def receive(self, source: Path, file: Path) -> None:
        """`source`: at the other end; `file`: is there, and as long."""
        with file.open("r+b") as stream:
            frames: Iterable[BytesValue] = self._down(BytesValue(value=bytes(source)))
            for frame in frames:
                stream.write(frame.value)


def _frames(file: Path) -> Iterator[BytesValue]:
    with file.open("rb") as stream:
        while data := stream.read(FRAME_BYTES):
            yield BytesValue(value=data)


async def _sink(frames: AsyncIterator[BytesValue], _: object) -> BytesValue:
    sha256 = hashlib.sha256()
    async for frame in frames:
        await asyncio.to_thread(sha256.update, frame.value)
    return BytesValue(value=sha256.hexdigest().encode())


async def _source(request: BytesValue, _: object) -> AsyncIterator[BytesValue]:
    with await asyncio.to_thread(Path(request.value.decode()).open, "rb") as stream:
        while data := await asyncio.to_thread(stream.read, FRAME_BYTES):
            yield BytesValue(value=data)


def _relay(channel: grpc.aio.Channel) -> tuple[Any, Any]:
    up, down = channel.stream_unary(_UP, **_CODECS), channel.unary_stream(_DOWN, **_CODECS)

    async def forward_up(frames: AsyncIterator[BytesValue], _: object) -> Any:
        return await up(frames)

    async def forward_down(request: BytesValue, _: object) -> AsyncIterator[BytesValue]:
        async for frame in down(request):
            yield frame

    return forward_up, forward_down


async def _serve(tls: Tls, following: str) -> None:
    up, down = _sink, _source
    if following:
        channel = grpc.aio.secure_channel(following, channel_credentials(tls), options=_OPTIONS)
        up, down = _relay(channel)
    codecs: dict[str, Any] = {
        "request_deserializer": BytesValue.FromString,
        "response_serializer": BytesValue.SerializeToString,
    }
    handlers = {
        "Up": grpc.stream_unary_rpc_method_handler(up, **codecs),
        "Down": grpc.unary_stream_rpc_method_handler(down, **codecs),
    }
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(tls, client_certificate=True))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def main() -> None:
    ca, cert, key, *following = sys.argv[1:]
    tls = Tls(ca=Path(ca).read_bytes(), cert=Path(cert).read_bytes(), key=Path(key).read_bytes())
    uvloop.run(_serve(tls, following[0] if following else ""))


if __name__ == "__main__":
    main()

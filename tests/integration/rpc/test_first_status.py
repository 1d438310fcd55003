"""A refusal of a stream keeps its reason, although the client was still writing when it came."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from remuda_core.rpc.first_status import FirstStatus

METHOD = "/test.Service/Take"
# The race that this is about is lost in one call of some fifty.
CALLS = 200


async def refuse(frames: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
    async for _ in frames:
        break
    await context.abort(grpc.StatusCode.ABORTED, "not this one", (("why", "so"),))


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    handler: Any = grpc.stream_unary_rpc_method_handler(refuse)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", {"Take": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def frames() -> AsyncIterator[bytes]:
    for _ in range(64):
        yield bytes(1 << 16)


async def test_a_client_that_is_still_writing_hears_why_it_was_refused(channel: grpc.aio.Channel) -> None:
    take: Any = channel.stream_unary(METHOD)
    for _ in range(CALLS):
        call = take(frames(), timeout=60)
        first = FirstStatus(call)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        error = await first.real(caught.value)
        assert error.code() is grpc.StatusCode.ABORTED, error
        assert error.details() == "not this one"
        assert ("why", "so") in tuple(error.trailing_metadata() or ())


async def written(call: Any) -> None:
    # What is written to a call that is known to be over is refused without a status.
    with contextlib.suppress(asyncio.InvalidStateError):
        for _ in range(64):
            await call.write(bytes(1 << 16))
        await call.done_writing()
    await call


async def test_who_writes_by_hand_hears_it_too(channel: grpc.aio.Channel) -> None:
    take: Any = channel.stream_unary(METHOD)
    for _ in range(CALLS):
        call = take(timeout=60)
        first = FirstStatus(call)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await written(call)
        error = await first.real(caught.value)
        assert error.code() is grpc.StatusCode.ABORTED, error
        assert ("why", "so") in tuple(error.trailing_metadata() or ())


async def test_an_error_of_the_call_itself_stays_what_it_is(channel: grpc.aio.Channel) -> None:
    async def endless() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    take: Any = channel.stream_unary(METHOD)
    call = take(endless(), timeout=0.2)
    first = FirstStatus(call)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert await first.real(caught.value) is caught.value
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

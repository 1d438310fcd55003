"""The status that a server has really sent, where grpc.aio would put INTERNAL in its place.

A server that refuses a stream of requests ends the call while the client is still writing. A write that comes
after that fails, and grpc.aio (1.85 and before) then overwrites the status that has arrived with INTERNAL
"Internal error from Core" (grpc/grpc#36066): the reason of the refusal would be lost now and then.
"""

from collections.abc import Coroutine
from typing import Any

import grpc


class FirstStatus:
    """Of one call that streams requests; made as soon as the call is, before anything is awaited."""

    def __init__(self, call: grpc.aio.Call) -> None:
        self._first: grpc.aio.AioRpcError | None = None
        call.add_done_callback(lambda _: self._note(call))

    def of(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """`error`, with which the call has ended, or what it stands in the place of."""
        if error.code() is grpc.StatusCode.INTERNAL and self._first is not None:
            return self._first
        return error

    def _note(self, call: grpc.aio.Call) -> None:
        # Called at the first status, whichever it is. To await it in a task would be too late.
        found = _at_once(_read(call))
        if found is not None and found.code() is not grpc.StatusCode.OK:
            self._first = found


async def _read(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(),
        await call.initial_metadata(),
        await call.trailing_metadata(),
        details=await call.details(),
    )


def _at_once(coroutine: Coroutine[Any, Any, grpc.aio.AioRpcError]) -> grpc.aio.AioRpcError | None:
    """Its result if it has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: grpc.aio.AioRpcError = done.value
        return result
    coroutine.close()
    return None

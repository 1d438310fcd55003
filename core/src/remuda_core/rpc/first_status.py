"""The status that a server has really sent, where grpc.aio would put INTERNAL in its place.

A server that refuses a stream of requests ends the call while the client is still writing. A write that
comes after that fails, and grpc.aio (1.85 and before) then sets INTERNAL "Internal error from Core", over the
status that has arrived or shortly before it does (grpc/grpc#36066): the reason of the refusal would be lost
now and then.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc

# As grpc.aio words it; a server's own INTERNAL says something else.
_IN_PLACE = "Internal error from Core"
_PATIENCE_SECONDS = 1.0
_LOOK_SECONDS = 0.02


class FirstStatus:
    """Of one call that streams requests; made as soon as the call is, before anything is awaited."""

    def __init__(self, call: grpc.aio.Call) -> None:
        self._call = call
        self._first: grpc.aio.AioRpcError | None = None
        call.add_done_callback(lambda _: self._note())

    async def real(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """`error`, with which a write, a read or the call has ended, or what it stands in the place of."""
        if not _in_place(error):
            return error
        give_up = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while self._first is None and asyncio.get_running_loop().time() < give_up:
            # The write has failed because the call was over: its status is on its way.
            await asyncio.sleep(_LOOK_SECONDS)
            self._note()
        return self._first or error

    def _note(self) -> None:
        # As a callback it is called at the first status, whichever it is; a task would look too late.
        found = _at_once(_read(self._call))
        if found is not None and found.code() is not grpc.StatusCode.OK and not _in_place(found):
            self._first = self._first or found


def _in_place(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _IN_PLACE


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

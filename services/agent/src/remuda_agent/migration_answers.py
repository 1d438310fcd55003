"""The answers of one Migrate stream, in the order in which they become known, between the progress."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from remuda.agent.v1.migration_pb2 import MigrateResponse
from remuda.compute.v1.migration_pb2 import CommandResult
from remuda.compute.v1.operation_pb2 import Progress

_UNREAD = 64
"""Answers that are owed on a stream; no further command is read from it meanwhile."""


class Answers:
    """Made per stream. What is owed when the stream is lost is asked for again on the next one."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[CommandResult] = asyncio.Queue()
        self._room = asyncio.Semaphore(_UNREAD)
        self._owed: set[asyncio.Task[None]] = set()

    async def expect(self, command_id: str, answer: "asyncio.Future[CommandResult]") -> None:
        """Waits while too many are owed."""
        await self._room.acquire()

        async def deliver() -> None:
            # Shielded: other streams wait for the same answer.
            result = CommandResult()
            result.CopyFrom(await asyncio.shield(answer))
            result.command_id = command_id
            self._ready.put_nowait(result)

        task = asyncio.create_task(deliver())
        self._owed.add(task)
        task.add_done_callback(self._owed.discard)

    async def among(self, progress: AsyncIterator[Progress]) -> AsyncGenerator[MigrateResponse, None]:
        """Ends with the progress, after the last answer that is owed then."""
        news = asyncio.ensure_future(anext(progress, None))
        answer = asyncio.ensure_future(self._ready.get())
        try:
            while not news.done() or news.result() is not None or answer.done():
                if answer.done():
                    yield self._told(answer.result())
                    answer = asyncio.ensure_future(self._ready.get())
                elif news.done() and (seen := news.result()) is not None:
                    news = asyncio.ensure_future(anext(progress, None))
                    yield MigrateResponse(progress=seen.migration)
                await asyncio.wait({news, answer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in (news, answer):
                wait.cancel()
            await asyncio.gather(news, answer, return_exceptions=True)
        await asyncio.gather(*self._owed, return_exceptions=True)
        while not self._ready.empty():
            yield self._told(self._ready.get_nowait())

    async def close(self) -> None:
        for task in self._owed:
            task.cancel()
        await asyncio.gather(*self._owed, return_exceptions=True)

    def _told(self, result: CommandResult) -> MigrateResponse:
        self._room.release()
        return MigrateResponse(result=result)

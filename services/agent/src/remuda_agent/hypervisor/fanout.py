"""One source of events, any number of subscribers; a slow one is told to look at everything again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from remuda_agent.hypervisor.model import EventKind, HypervisorEvent

BACKLOG = 1024


class Fanout:
    """All methods belong to the event loop's thread."""

    def __init__(self, *, backlog: int = BACKLOG) -> None:
        self._backlog = backlog
        self._queues: set[asyncio.Queue[HypervisorEvent | None]] = set()

    def put(self, event: HypervisorEvent) -> None:
        for queue in self._queues:
            if queue.qsize() < self._backlog:
                queue.put_nowait(event)
            else:
                # Whoever is this far behind gains nothing from the details.
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(_relist())

    def relist(self) -> None:
        """Events were lost."""
        self.put(_relist())

    def close(self) -> None:
        """Every iterator ends after what it has not read yet."""
        for queue in self._queues:
            queue.put_nowait(None)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[HypervisorEvent]]:
        """Events from now on, after one RELIST."""
        queue: asyncio.Queue[HypervisorEvent | None] = asyncio.Queue()
        queue.put_nowait(_relist())
        self._queues.add(queue)
        try:
            yield _read(queue)
        finally:
            self._queues.discard(queue)


async def _read(queue: asyncio.Queue[HypervisorEvent | None]) -> AsyncIterator[HypervisorEvent]:
    while (event := await queue.get()) is not None:
        yield event


def _relist() -> HypervisorEvent:
    return HypervisorEvent(kind=EventKind.RELIST, instance_id=None, detail="", time=datetime.now(UTC))

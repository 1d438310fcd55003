"""One fetch of a base however many wait for it. It ends when the last of them leaves, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from remuda.compute.v1.operation_pb2 import Progress
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId

OnProgress = Callable[[Progress], None]

_OF_ONE_ASK = frozenset({Reason.GRANT_REFUSED, Reason.IMAGE_NOT_FOUND, Reason.IMAGE_NOT_ACTIVE})
"""Said of the image or the grant by which it was asked for, not of the base: another ask may do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ask:
    """Two images may have one manifest, so what each waiter asks by may differ."""

    image_id: ImageId
    grant: SignedGrant
    on_progress: OnProgress


Fetch = Callable[[Ask, OnProgress], Awaitable[Path]]


@dataclass(slots=True, eq=False)
class _Flight:
    fetch: Fetch
    waiting: list[Ask] = field(default_factory=list)
    latest: Progress | None = None

    async def run(self) -> Path:
        tried: list[Ask] = []
        while True:
            ask = next(one for one in self.waiting if one not in tried)
            tried.append(ask)
            try:
                return await self.fetch(ask, self._tell)
            except RemudaError as error:
                if error.reason not in _OF_ONE_ASK or all(one in tried for one in self.waiting):
                    raise

    def _tell(self, progress: Progress) -> None:
        self.latest = progress
        for ask in self.waiting:
            ask.on_progress(progress)


class Flights:
    """By base. Whoever joins gets the same base or the same error as the others."""

    def __init__(self) -> None:
        self._flights: dict[Path, tuple[_Flight, asyncio.Task[Path]]] = {}

    def joinable(self, base: Path) -> bool:
        """Somebody fetches it just now."""
        return base in self._flights

    async def join(self, base: Path, ask: Ask, fetch: Fetch) -> Path:
        """Begins it with `fetch` when nobody waits for that base yet. Raises what the fetch raised."""
        found = self._flights.get(base)
        if found is None:
            flight = _Flight(fetch, [ask])
            task = asyncio.create_task(flight.run(), name=f"fetch {base.name}")
            self._flights[base] = flight, task
            task.add_done_callback(lambda _: self._forget(base, task))
        else:
            flight, task = found
            flight.waiting.append(ask)
            if flight.latest is not None:
                ask.on_progress(flight.latest)
        try:
            return await asyncio.shield(task)
        finally:
            flight.waiting.remove(ask)
            if not flight.waiting and not task.done():
                # Before it is waited for: who comes now begins another one, which goes on from what is there.
                self._forget(base, task)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _forget(self, base: Path, task: asyncio.Task[Path]) -> None:
        if base in self._flights and self._flights[base][1] is task:
            del self._flights[base]
        if task.done() and not task.cancelled():
            task.exception()  # told to whoever waits; asyncio need not complain when nobody does any more

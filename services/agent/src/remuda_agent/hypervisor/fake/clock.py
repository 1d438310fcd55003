"""Time of the fake: the machine's own, faster, or one that only moves when a test says so."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since some fixed instant; the same instant in every process that shares a fabric."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class WallClock:
    """The machine's clock. ``speed`` 10 makes a guest's ten seconds take one."""

    def __init__(self, *, speed: float = 1.0) -> None:
        self._speed = speed

    def now(self) -> float:
        # Not monotonic(): a fabric kept in a file is read by other processes, and after a restart.
        return time.time() * self._speed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds) / self._speed)


class ManualClock:
    """Stands still until `advance`."""

    def __init__(self) -> None:
        self._now = 0.0
        self._tie = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._tie), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Move on, waking sleepers in order; each runs before the clock passes the next one's time."""
        end = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, woken = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            if not woken.done():
                woken.set_result(None)
            await _let_others_run()
        self._now = end
        await _let_others_run()


async def _let_others_run() -> None:
    # A woken sleeper takes a few turns of the loop until it sleeps again or is through.
    for _ in range(10):
        await asyncio.sleep(0)

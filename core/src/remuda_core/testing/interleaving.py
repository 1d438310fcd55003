"""For tests that choose the order of events: actors whose steps wait until an explorer lets them happen."""

import asyncio
import random
from contextvars import ContextVar

actor: ContextVar[str] = ContextVar("actor", default="")
"""Who makes the steps of this task, and of those that it starts."""


class Explorer:
    """Lets one waiting step happen after the other."""

    def __init__(self, seed: int, longest: int) -> None:
        """`longest`: steps of a usual run."""
        self.random = random.Random(seed)
        self.waiting: list[tuple[str, asyncio.Future[None]]] = []
        self.dead: set[str] = set()
        self.trace: list[str] = []
        self.open = False
        """Steps happen at once: the end of a run, when nothing is to be chosen any more."""
        # Sometimes anything; else one after the other, but whoever is at work after so many steps comes last
        # from then on: few changes find most of what an order can break (Burckhardt et al., ASPLOS 2010).
        self._wild = self.random.random() < 0.25
        self._changes = {self.random.randrange(longest) for _ in range(self.random.choice((1, 2, 3, 6)))}
        self._rank: dict[str, float] = {}
        self._steps = 0
        self._over = False

    async def step(self, name: str) -> None:
        if self._over:
            raise asyncio.CancelledError
        if self.open and actor.get() not in self.dead:
            return
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((actor.get(), future))
        await future
        self.trace.append(f"{actor.get()}: {name}")

    def end(self) -> None:
        """Who waits still is not even to clean up."""
        self._over = True
        for _, future in self.waiting:
            future.cancel()

    async def settle(self) -> None:
        quiet = 0
        while quiet < 8:
            before = len(self.waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self.waiting) == before else 0

    def choose(self) -> bool:
        """Whether there was a step left."""
        alive = [entry for entry in self.waiting if entry[0] not in self.dead]
        if not alive:
            return False
        for name, _ in alive:
            self._rank.setdefault(name, self.random.random())
        first = max(alive, key=lambda entry: self._rank[entry[0]])
        chosen = self.random.choice(alive) if self._wild else first
        if self._steps in self._changes:
            self._rank[chosen[0]] = min(self._rank.values()) - 1
        self._steps += 1
        self.waiting.remove(chosen)
        chosen[1].set_result(None)
        return True

"""Failures and delays to order, per host and call."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from dataclasses import dataclass, field

from remuda_core.errors import RemudaError

from remuda_agent.hypervisor.fake.clock import Clock
from remuda_agent.hypervisor.model import hypervisor_error


@dataclass(frozen=True, slots=True)
class _Failure:
    error: RemudaError
    after: bool


@dataclass(slots=True)
class Faults:
    """``call`` is the name of a method of Hypervisor."""

    _failures: dict[str, deque[_Failure]] = field(default_factory=lambda: defaultdict(deque))
    _delays: dict[str, float] = field(default_factory=dict)
    _gates: dict[str, asyncio.Event] = field(default_factory=dict)

    def fail(
        self,
        call: str,
        message: str = "injected failure",
        *,
        error: RemudaError | None = None,
        times: int = 1,
        after: bool = False,
    ) -> None:
        """The next ``times`` calls fail; ``after``: only once their work is done, like a lost answer."""
        failure = _Failure(error or hypervisor_error(message), after)
        self._failures[call].extend([failure] * times)

    def delay(self, call: str, seconds: float) -> None:
        """Every call takes that long before it does anything; 0 ends it."""
        self._delays[call] = seconds

    def hang(self, call: str) -> asyncio.Event:
        """Every call waits before it does anything until the returned event is set."""
        gate = self._gates[call] = asyncio.Event()
        return gate

    async def before(self, call: str, clock: Clock) -> None:
        """What a driver does first."""
        if gate := self._gates.get(call):
            await gate.wait()
        if seconds := self._delays.get(call):
            await clock.sleep(seconds)
        self._raise(call, after=False)

    def finished(self, call: str) -> None:
        """What a driver does last."""
        self._raise(call, after=True)

    def _raise(self, call: str, *, after: bool) -> None:
        waiting = self._failures.get(call)
        if waiting and waiting[0].after is after:
            raise waiting.popleft().error

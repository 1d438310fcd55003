"""Who needs a base that no disk lies on yet: kept in memory, since after a restart whoever lays a disk asks
for its base again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from remuda_core.ids import OperationId

LONGEST_SECONDS = 3600.0
"""An operation that says nothing for so long asks again, or has been given up on another host's word."""


class Promises:
    """A promise is an operation's, from asking for a base until its disk lies on it; a hold is a task's."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._promised: dict[OperationId, tuple[Path, float]] = {}
        self._held: Counter[Path] = Counter()

    def promise(self, base: Path, operation: OperationId) -> None:
        """Replaces what the operation was promised before: it has one disk."""
        self._promised[operation] = (base, self._clock() + LONGEST_SECONDS)

    def fulfil(self, operation: OperationId) -> None:
        """Its disk lies on the base, or never will."""
        self._promised.pop(operation, None)

    @contextmanager
    def holding(self, base: Path) -> Iterator[None]:
        self._held[base] += 1
        try:
            yield
        finally:
            self._held[base] -= 1
            if not self._held[base]:
                del self._held[base]

    def needs(self, base: Path) -> bool:
        if base in self._held:
            return True
        now = self._clock()
        for operation in [one for one, (_, until) in self._promised.items() if until < now]:
            del self._promised[operation]
        return any(promised == base for promised, _ in self._promised.values())

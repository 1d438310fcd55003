"""Probes of a host pair that are fresh enough to be used again.

Only what held is kept. A failure is worth asking about again: the operator may have repaired it a second ago.
"""

import time
from collections.abc import Callable, Hashable
from typing import Any

from remuda_scheduler.preflight.facts import Probe

REUSE_SECONDS = 30.0


class Recent:
    """Keyed by whatever names the question completely. Not thread-safe: one event loop owns it."""

    def __init__(
        self, seconds: float = REUSE_SECONDS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._kept: dict[Hashable, tuple[float, Probe[Any]]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Hashable) -> Probe[Any] | None:
        kept = self._kept.get(key)
        return kept[1] if kept is not None and self._fresh(kept[0]) else None

    def keep(self, key: Hashable, probe: Probe[Any]) -> None:
        """Also forgets what has become too old, so that it never grows beyond what was asked lately."""
        self._kept = {known: kept for known, kept in self._kept.items() if self._fresh(kept[0])}
        self._kept[key] = (self._clock(), probe)

    def forget(self, key: Hashable) -> None:
        """It has been seen not to hold: whoever asks next must not be told that it did a moment ago."""
        self._kept.pop(key, None)

    def _fresh(self, kept_at: float) -> bool:
        return self._clock() - kept_at < self._seconds

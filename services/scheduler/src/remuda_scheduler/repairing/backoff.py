"""When a damaged chunk is looked for again. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

FIRST_SECONDS = 5.0
LONGEST_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Of one chunk."""

    at: float
    rounds: int = 0
    """That have not helped."""


class Backoff:
    """By digest. Times are seconds of any clock that does not go back."""

    def __init__(
        self, *, first_seconds: float = FIRST_SECONDS, longest_seconds: float = LONGEST_SECONDS
    ) -> None:
        self._first = first_seconds
        self._longest = longest_seconds
        self._dues: dict[str, Due] = {}

    def due(self, present: Collection[str], now: float) -> list[str]:
        """Those of `present` that are to be tried now: a new one at once. The others are forgotten."""
        self._dues = {one: self._dues.get(one, Due(at=now)) for one in present}
        return [one for one, due in self._dues.items() if due.at <= now]

    def tried(self, digest: str, now: float) -> None:
        """It did not help, as far as is known."""
        rounds = self._dues[digest].rounds
        # Bounded before it is used: 2 to the number of rounds of a year is no float.
        pause = min(self._first * 2 ** min(rounds, 30), self._longest)
        self._dues[digest] = Due(at=now + pause, rounds=rounds + 1)

    def rounds(self, digest: str) -> int:
        return self._dues[digest].rounds

    def pause(self, now: float) -> float | None:
        """Seconds until the next one is due; None: there is none."""
        return min((max(0.0, due.at - now) for due in self._dues.values()), default=None)

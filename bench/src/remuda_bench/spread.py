"""A handful of measured values, and how two tools compare over the same runs. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of one or more values. No mean and no deviation: with seven runs on a shared machine one bad value
    would tell of itself only.
    """

    median: float
    least: float
    most: float
    count: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """None stands for a value that could not be had; None comes back when there is no other."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(median=statistics.median(known), least=min(known), most=max(known), count=len(known))


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Spread | None:
    """Run by run, so that what slows a machine down for a while slows both sides of a ratio.

    Raises ValueError when the runs are not as many. Runs that lack a value, or divide by nothing, are left
    out.
    """
    pairs = zip(ours, theirs, strict=True)
    return spread(one / other for one, other in pairs if one is not None and other)

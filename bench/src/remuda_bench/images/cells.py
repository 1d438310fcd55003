"""Cells of the tables of the bench of images. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from remuda_bench.images.figures import Taken
from remuda_bench.spread import Spread, ratios, spread


def about(taken: Taken, rest: str) -> Iterator[str]:
    machine = ", ".join(f"{name} {value}" for name, value in taken.machine.items())
    load = ", ".join(f"{value:.1f} {when}" for when, value in taken.load.items())
    runs = "1 run" if taken.runs == 1 else f"{taken.runs} runs"
    yield f"Taken {taken.date} in {taken.took_seconds:.0f} s, {runs}{rest}"
    yield f"Machine: {machine}. Load average {load}."


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> Iterator[str]:
    yield row(*cells)
    yield "|---" * len(cells) + "|"


def told(found: Spread | None, digits: int) -> str:
    if found is None:
        return "unknown"
    return f"{found.median:.{digits}f} ({found.least:.{digits}f} to {found.most:.{digits}f})"


def values(found: Iterable[float], digits: int = 1) -> str:
    return told(spread(found), digits)


def ratio(ours: Iterable[float], theirs: Iterable[float], digits: int = 2) -> str:
    """Run by run."""
    return told(ratios(list(ours), list(theirs)), digits)

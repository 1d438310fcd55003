"""The rows of the design's table of outcomes, recognised in what the schedulers logged. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from remuda_lab.faults.move import Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRow:
    """What two hosts show, and what follows."""

    source: str
    target: str
    outcome: str
    means: str
    shown: Callable[[Sequence[str], Sequence[str]], bool]
    """Of a judgement with that outcome, by the words for the source and the target."""


def _is(words: Sequence[str], *wanted: str) -> bool:
    return all(one in words for one in wanted)


OUTCOME_ROWS = (
    OutcomeRow(
        source="any",
        target="RUNNING",
        outcome="MOVED",
        means="ownership moves on that evidence alone",
        shown=lambda _, target: _is(target, "RUNNING", "job NONE"),
    ),
    OutcomeRow(
        source="unreachable",
        target="RUNNING",
        outcome="MOVED",
        means="the same; the source owes its clean-up",
        shown=lambda source, target: _is(source, "UNREACHABLE") and _is(target, "RUNNING", "job NONE"),
    ),
    OutcomeRow(
        source="RUNNING, no job",
        target="absent",
        outcome="STAYED",
        means="failed cleanly, or begun again when nobody knows how the job ended",
        shown=lambda source, target: _is(source, "RUNNING", "job NONE") and _is(target, "ABSENT"),
    ),
    OutcomeRow(
        source="RUNNING, no job",
        target="unreachable",
        outcome="STAYED",
        means="failed cleanly; the target owes its clean-up",
        shown=lambda source, target: _is(source, "RUNNING", "job NONE") and _is(target, "UNREACHABLE"),
    ),
    OutcomeRow(
        source="RUNNING, job",
        target="PAUSED, incoming",
        outcome="JOIN",
        means="the job is joined",
        shown=lambda source, target: _is(source, "RUNNING", "job OUT") and _is(target, "PAUSED", "job IN"),
    ),
    OutcomeRow(
        source="PAUSED after the switch-over",
        target="unreachable",
        outcome="WAIT",
        means="WAITING_FOR_HOST; the source is not resumed",
        shown=lambda source, target: (
            _is(source, "PAUSED", "MIGRATION", "job NONE") and _is(target, "UNREACHABLE")
        ),
    ),
    OutcomeRow(
        source="RUNNING",
        target="RUNNING",
        outcome="SPLIT",
        means="the copy on record goes on, the other is paused, an operator decides",
        shown=lambda source, target: _is(source, "RUNNING") and _is(target, "RUNNING"),
    ),
    OutcomeRow(
        source="SHUTOFF by the guest's own shutdown",
        target="absent",
        outcome="GUEST_STOPPED",
        means="failed, the instance is STOPPED",
        shown=lambda source, _: _is(source, "SHUTOFF", "SHUTDOWN"),
    ),
    OutcomeRow(
        source="SHUTOFF, crashed",
        target="absent",
        outcome="GUEST_LOST",
        means="failed, started anew at the source",
        shown=lambda source, _: _is(source, "CRASHED") or _is(source, "SHUTOFF"),
    ),
    OutcomeRow(
        source="unreachable",
        target="unreachable",
        outcome="WAIT",
        means="WAITING_FOR_HOST",
        shown=lambda source, target: _is(source, "UNREACHABLE") and _is(target, "UNREACHABLE"),
    ),
)
"""Without the one of broken post-copy, which a loaded machine does not produce at a wanted moment."""


def rows_shown(judgements: Sequence[Judgement]) -> tuple[int, ...]:
    """Indices of the rows that these judgements are examples of."""
    return tuple(
        index
        for index, row in enumerate(OUTCOME_ROWS)
        if any(
            one.outcome == row.outcome and row.shown(one.source.split(", "), one.target.split(", "))
            for one in judgements
        )
    )

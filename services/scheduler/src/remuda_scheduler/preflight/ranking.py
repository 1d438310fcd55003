"""Which hosts are worth a probe, and who comes first in the answer. Pure."""

from collections.abc import Iterable, Sequence

from remuda.compute.v1.moving_pb2 import MigrationCandidate, MigrationCheck
from remuda_core.ids import HostId

from remuda_scheduler.placement.model import Plan

DEFAULT_PROBES = 5

_ORDER = (
    MigrationCheck.VERDICT_PASS,
    MigrationCheck.VERDICT_WARN,
    MigrationCheck.VERDICT_UNKNOWN,
    MigrationCheck.VERDICT_FAIL,
)


def to_probe(plan: Plan, *, limit: int, named: HostId | None) -> frozenset[HostId]:
    """The best `limit` hosts that pass the cheap filters; a host that was named, whatever they say."""
    if named is not None:
        return frozenset({named})
    eligible = [verdict.host.id for verdict in plan.verdicts if verdict.eligible]
    return frozenset(eligible[: limit or DEFAULT_PROBES])


def ranked(candidates: Iterable[MigrationCandidate]) -> Sequence[MigrationCandidate]:
    """Probed ones by verdict and score, then the rest; the same order whenever the same was seen."""
    return sorted(
        candidates,
        key=lambda one: (not one.probed, _place(one.verdict), -one.score, one.display_name, one.host),
    )


def _place(verdict: "MigrationCheck.Verdict.ValueType") -> int:
    return _ORDER.index(verdict) if verdict in _ORDER else len(_ORDER)

"""From facts to a candidate of the table. Pure."""

from google.protobuf.duration_pb2 import Duration
from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.moving_pb2 import MigrationCandidate
from remuda_core.migration.preflight import worst
from remuda_core.names import host_name

from remuda_scheduler.preflight.conditions import CONDITIONS
from remuda_scheduler.preflight.conditions.convergence import estimate
from remuda_scheduler.preflight.facts import Facts


def judge(facts: Facts, *, score: float = 0.0) -> MigrationCandidate:
    """All rows that can be said; with probes one for every condition."""
    checks = [check for condition in CONDITIONS.values() if (check := condition(facts)) is not None]
    expected = estimate(facts)
    return MigrationCandidate(
        host=host_name(facts.target.placement.id),
        display_name=facts.target.name,
        kind=_kind(facts),
        verdict=worst(checks),
        checks=checks,
        probed=facts.probes is not None,
        score=score,
        expected_duration=None if expected is None else _duration(expected.seconds),
    )


def _kind(facts: Facts) -> "Migration.Kind.ValueType":
    """Without probes only what the pools claim."""
    shared = facts.same_storage if facts.probes is not None else facts.claims_same_storage
    return Migration.KIND_LIVE_SHARED if shared else Migration.KIND_LIVE_BLOCK


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration

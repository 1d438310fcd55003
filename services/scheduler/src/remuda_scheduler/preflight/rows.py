"""Rows of the table: built in one way, so that every condition says what was seen and what is needed."""

from collections.abc import Callable
from typing import Any, TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp
from remuda.compute.v1.moving_pb2 import MigrationCheck
from remuda_core.rpc.clipping import clip_text

from remuda_scheduler.preflight.facts import Facts, NoAnswer, Probe

Condition: TypeAlias = Callable[[Facts], MigrationCheck | None]
"""None: it takes a probe to say more, and there was none. With probes there is always a row."""

PASS, WARN, FAIL = MigrationCheck.VERDICT_PASS, MigrationCheck.VERDICT_WARN, MigrationCheck.VERDICT_FAIL
UNKNOWN = MigrationCheck.VERDICT_UNKNOWN
NOT_APPLICABLE = MigrationCheck.VERDICT_NOT_APPLICABLE

MAX_BYTES = 512
"""Of every text in a row: moving.proto."""


def row(
    facts: Facts,
    condition: "MigrationCheck.Condition.ValueType",
    verdict: "MigrationCheck.Verdict.ValueType",
    *,
    of: tuple[Probe[Any], ...] = (),
    source: str = "",
    target: str = "",
    required: str = "",
    fix: str = "",
) -> MigrationCheck:
    """`of`: the probes it rests on; none: what the leader knows."""
    seen = Timestamp()
    seen.FromDatetime(min((probe.seen_at for probe in of), default=facts.at))
    return MigrationCheck(
        condition=condition,
        verdict=verdict,
        observed_source=clip_text(source, MAX_BYTES),
        observed_target=clip_text(target, MAX_BYTES),
        required=clip_text(required, MAX_BYTES),
        fix=clip_text(fix, MAX_BYTES),
        duration_ms=max((probe.duration_ms for probe in of), default=0),
        check_time=seen,
    )


def unknown(
    facts: Facts,
    condition: "MigrationCheck.Condition.ValueType",
    *,
    of: tuple[Probe[Any], ...],
    source: Probe[Any] | None = None,
    target: Probe[Any] | None = None,
    required: str,
) -> MigrationCheck:
    """`source`, `target`: whose silence it is; what the other side said is not shown."""
    return row(
        facts,
        condition,
        UNKNOWN,
        of=of,
        source=_words(source),
        target=_words(target),
        required=required,
        fix="Find out why it could not be asked (is the agent up, and can the leader reach it?) "
        "and check again.",
    )


def _words(probe: Probe[Any] | None) -> str:
    return probe.found.words if probe is not None and isinstance(probe.found, NoAnswer) else ""

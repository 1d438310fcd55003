"""Which hosts are probed, who comes first, and for how long an answer is good."""

from dataclasses import replace
from typing import Any

from remuda.compute.v1.moving_pb2 import MigrationCandidate, MigrationCheck
from remuda_core.ids import HostId
from remuda_scheduler.placement.model import Plan, Verdict
from remuda_scheduler.preflight.ranking import ranked, to_probe
from remuda_scheduler.preflight.reuse import Recent

from tests.unit.preflight.conftest import DEMAND, a_host, seen

PASS, WARN, FAIL = MigrationCheck.VERDICT_PASS, MigrationCheck.VERDICT_WARN, MigrationCheck.VERDICT_FAIL
UNKNOWN = MigrationCheck.VERDICT_UNKNOWN


def plan(*names: str, refused: tuple[str, ...] = ()) -> Plan:
    verdicts = [
        Verdict(host=replace(a_host(name), id=HostId(name)), filter="memory" if name in refused else "")
        for name in names
    ]
    return Plan(chosen=None, verdicts=verdicts, rejections={}, demand=DEMAND)


def candidate(name: str, verdict: MigrationCheck.Verdict.ValueType, **fields: Any) -> MigrationCandidate:
    return MigrationCandidate(host=name, display_name=name, verdict=verdict, **{"probed": True, **fields})


def test_the_best_that_pass_the_cheap_filters_are_probed_and_no_more_than_asked() -> None:
    hosts = plan("a", "b", "c", "d", "e", "f", "g", refused=("b",))
    assert to_probe(hosts, limit=0, named=None) == {"a", "c", "d", "e", "f"}
    assert to_probe(hosts, limit=2, named=None) == {"a", "c"}


def test_a_named_host_is_probed_whatever_the_cheap_filters_say() -> None:
    assert to_probe(plan("a", "b", refused=("b",)), limit=1, named=HostId("b")) == {"b"}


def test_probed_ones_come_by_verdict_and_score_then_the_rest() -> None:
    given = [
        candidate("unprobed", PASS, probed=False, score=9.0),
        candidate("failed", FAIL, score=9.0),
        candidate("unknown", UNKNOWN),
        candidate("low", PASS, score=1.0),
        candidate("warned", WARN, score=9.0),
        candidate("high", PASS, score=2.0),
    ]
    names = [one.host for one in ranked(given)]
    assert names == ["high", "low", "warned", "unknown", "failed", "unprobed"]
    assert [one.host for one in ranked(reversed(given))] == names


def test_an_answer_is_used_again_until_it_is_too_old_and_is_then_forgotten() -> None:
    now = 100.0
    recent = Recent(30.0, clock=lambda: now)
    answer = seen("it holds")
    recent.keep("a pair", answer)
    now = 129.9
    assert recent.find("a pair") is answer
    assert recent.find("another pair") is None
    now = 130.0
    assert recent.find("a pair") is None
    recent.keep("a later pair", answer)
    assert len(recent) == 1


def test_with_no_time_at_all_nothing_is_used_again() -> None:
    recent = Recent(0.0)
    recent.keep("a pair", seen("it holds"))
    assert recent.find("a pair") is None

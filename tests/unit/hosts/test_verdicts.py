"""Verdicts on copies, over everything that a record, an operation and two hosts can say."""

import itertools

import pytest
from remuda.scheduler.v1.registry_pb2 import Verdict
from remuda_core.ids import HostId
from remuda_scheduler.hosts.verdicts import HOLD, KEEP, RELEASE, Placed, decide

A, B = HostId("a"), HostId("b")
SHOWN = Placed(host=A, epoch=5)
RECORDS = {
    "nothing": None,
    "this copy": SHOWN,
    "this host, earlier": Placed(host=A, epoch=4),
    "this host, later": Placed(host=A, epoch=6),
    "another host, earlier": Placed(host=B, epoch=4),
    "another host, same epoch": Placed(host=B, epoch=5),
    "another host, later": Placed(host=B, epoch=6),
    "another host, much later": Placed(host=B, epoch=60),
}
FLAGS = list(itertools.product((False, True), repeat=3))


def expected(record: str, *, held: bool, other_seen: bool, current: bool) -> "Verdict.Decision.ValueType":
    """The design's sentences."""
    if current and record == "this copy":
        return KEEP
    moved_on = record in ("another host, later", "another host, much later")
    if current and moved_on and not held and other_seen:
        return RELEASE
    return HOLD


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize(("held", "other_seen", "current"), FLAGS)
def test_every_combination_has_the_verdict_of_the_design(
    record: str, held: bool, other_seen: bool, current: bool
) -> None:
    facts = {"held": held, "other_seen": other_seen, "current": current}
    assert decide(SHOWN, RECORDS[record], **facts) == expected(record, **facts)


def test_at_most_one_of_two_copies_is_kept() -> None:
    for record, flags in itertools.product(RECORDS.values(), FLAGS):
        facts = dict(zip(("held", "other_seen", "current"), flags, strict=True))
        copies = [Placed(host=host, epoch=epoch) for host in (A, B) for epoch in (4, 5, 6)]
        kept = [copy for copy in copies if decide(copy, record, **facts) == KEEP]
        assert kept in ([], [record])


def test_what_the_record_names_is_never_released() -> None:
    for flags in FLAGS:
        facts = dict(zip(("held", "other_seen", "current"), flags, strict=True))
        assert decide(SHOWN, SHOWN, **facts) != RELEASE

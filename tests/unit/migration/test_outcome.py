"""decide_outcome over the whole product of what two hosts can show."""

from collections.abc import Iterator
from itertools import product

import pytest
from remuda_core.migration.outcome import (
    ABSENT,
    UNREACHABLE,
    Job,
    Journalled,
    Outcome,
    Power,
    Sight,
    Why,
    decide_outcome,
)

NOT_SAID = Journalled()
SUCCEEDED = Journalled(source_succeeded=True)

RUNNING = Sight(power=Power.RUNNING)
RUNNING_OUT = Sight(power=Power.RUNNING, job=Job.OUT)
PAUSED = Sight(power=Power.PAUSED)
SWITCHING = Sight(power=Power.PAUSED, why=Why.MIGRATION)
SWITCHING_OUT = Sight(power=Power.PAUSED, why=Why.MIGRATION, job=Job.OUT)
INCOMING = Sight(power=Power.PAUSED, why=Why.MIGRATION, job=Job.IN)
MIGRATED = Sight(power=Power.SHUTOFF, why=Why.MIGRATION)
SHUT_DOWN = Sight(power=Power.SHUTOFF, why=Why.SHUTDOWN)
SHUTOFF = Sight(power=Power.SHUTOFF)
DIED = Sight(power=Power.SHUTOFF, why=Why.CRASHED)
CRASHED = Sight(power=Power.CRASHED, why=Why.CRASHED)
POSTCOPY = Sight(power=Power.PAUSED, why=Why.POSTCOPY)
POSTCOPY_OUT = Sight(power=Power.PAUSED, why=Why.POSTCOPY, job=Job.OUT)
POSTCOPY_FAILED = Sight(power=Power.PAUSED, why=Why.POSTCOPY_FAILED)
RUNNING_POSTCOPY = Sight(power=Power.RUNNING, why=Why.POSTCOPY, job=Job.IN)
OTHERS = Sight(power=Power.RUNNING, ours=False)


def all_sights() -> list[Sight]:
    return [
        Sight(power=power, why=why, job=job, ours=ours)
        for power, why, job, ours in product(Power, Why, Job, (True, False))
    ]


def everything() -> Iterator[tuple[Sight, Sight, Journalled]]:
    sights = all_sights()
    yield from product(sights, sights, (NOT_SAID, SUCCEEDED))


TABLE = [
    # The design's table, row by row.
    (MIGRATED, RUNNING, Outcome.MOVED),
    (SWITCHING, RUNNING, Outcome.MOVED),
    (SWITCHING_OUT, RUNNING, Outcome.MOVED),
    (ABSENT, RUNNING, Outcome.MOVED),
    (CRASHED, RUNNING, Outcome.MOVED),
    (SHUT_DOWN, RUNNING, Outcome.MOVED),
    (UNREACHABLE, RUNNING, Outcome.MOVED),
    (RUNNING, ABSENT, Outcome.STAYED),
    (RUNNING, INCOMING, Outcome.STAYED),
    (RUNNING, UNREACHABLE, Outcome.STAYED),
    (RUNNING_OUT, INCOMING, Outcome.JOIN),
    (RUNNING_OUT, ABSENT, Outcome.JOIN),
    (RUNNING_OUT, UNREACHABLE, Outcome.JOIN),
    (SWITCHING, UNREACHABLE, Outcome.WAIT),
    (MIGRATED, UNREACHABLE, Outcome.WAIT),
    (RUNNING, RUNNING, Outcome.SPLIT),
    (RUNNING_OUT, RUNNING, Outcome.JOIN),
    (SHUT_DOWN, ABSENT, Outcome.GUEST_STOPPED),
    (SHUT_DOWN, INCOMING, Outcome.GUEST_STOPPED),
    (CRASHED, ABSENT, Outcome.GUEST_LOST),
    (DIED, ABSENT, Outcome.GUEST_LOST),
    (SHUTOFF, ABSENT, Outcome.GUEST_LOST),
    (POSTCOPY_FAILED, POSTCOPY_FAILED, Outcome.SPLIT_MEMORY),
    (POSTCOPY, POSTCOPY_FAILED, Outcome.SPLIT_MEMORY),
    (POSTCOPY_OUT, RUNNING_POSTCOPY, Outcome.JOIN),
    (POSTCOPY_FAILED, UNREACHABLE, Outcome.WAIT),
    (UNREACHABLE, UNREACHABLE, Outcome.WAIT),
    (UNREACHABLE, ABSENT, Outcome.WAIT),
    (UNREACHABLE, INCOMING, Outcome.WAIT),
    # What the table leaves to the function.
    (MIGRATED, ABSENT, Outcome.GUEST_LOST),
    (MIGRATED, PAUSED, Outcome.MOVED),
    (MIGRATED, INCOMING, Outcome.JOIN),
    (MIGRATED, SHUT_DOWN, Outcome.MOVED),
    (MIGRATED, CRASHED, Outcome.MOVED),
    (PAUSED, ABSENT, Outcome.STAYED),
    (PAUSED, UNREACHABLE, Outcome.STAYED),
    (SWITCHING, ABSENT, Outcome.STAYED),
    (SWITCHING, INCOMING, Outcome.STAYED),
    (CRASHED, UNREACHABLE, Outcome.WAIT),
    (SHUT_DOWN, UNREACHABLE, Outcome.WAIT),
    (ABSENT, ABSENT, Outcome.GUEST_LOST),
    (RUNNING, OTHERS, Outcome.STAYED),
    (MIGRATED, OTHERS, Outcome.GUEST_LOST),
]


@pytest.mark.parametrize(("source", "target", "outcome"), TABLE)
def test_the_table_of_the_design_holds(source: Sight, target: Sight, outcome: Outcome) -> None:
    assert decide_outcome(source, target, NOT_SAID) is outcome


def test_every_pair_of_sights_has_an_outcome() -> None:
    assert {type(decide_outcome(*case)) for case in everything()} == {Outcome}


def test_every_outcome_is_reached() -> None:
    assert {decide_outcome(*case) for case in everything()} == set(Outcome)


def test_ownership_moves_only_to_a_target_that_shows_our_copy() -> None:
    for source, target, journal in everything():
        if decide_outcome(source, target, journal) is Outcome.MOVED:
            assert target.here, (source, target)
            assert not target.split, (source, target)


def test_ownership_never_moves_away_from_a_source_that_runs_the_guest() -> None:
    for source, target, journal in everything():
        if source.here and source.power is Power.RUNNING:
            assert decide_outcome(source, target, journal) is not Outcome.MOVED, (source, target)


def test_the_source_is_declared_the_holder_only_when_it_shows_the_guest_alive() -> None:
    for source, target, journal in everything():
        if decide_outcome(source, target, journal) is Outcome.STAYED:
            assert source.alive, (source, target)
            assert source.job is not Job.OUT, (source, target)


def test_after_the_switch_over_an_unreachable_target_is_always_waited_for() -> None:
    for source in all_sights():
        if source.here and source.why is Why.MIGRATION and source.power is not Power.RUNNING:
            outcome = decide_outcome(source, UNREACHABLE, NOT_SAID)
            assert outcome in (Outcome.WAIT, Outcome.JOIN), source
            assert outcome is Outcome.WAIT or source.job is Job.OUT, source


def test_an_unreachable_source_is_given_up_only_for_a_target_that_runs_or_a_job_that_succeeded() -> None:
    for target, journal in product(all_sights(), (NOT_SAID, SUCCEEDED)):
        if decide_outcome(UNREACHABLE, target, journal) is Outcome.MOVED:
            assert target.power is Power.RUNNING or journal.source_succeeded, target


def test_a_paused_guest_moves_from_an_unreachable_source_once_its_job_is_known_to_have_succeeded() -> None:
    assert decide_outcome(UNREACHABLE, PAUSED, NOT_SAID) is Outcome.WAIT
    assert decide_outcome(UNREACHABLE, PAUSED, SUCCEEDED) is Outcome.MOVED


def test_split_memory_is_never_called_anything_that_would_destroy_a_half() -> None:
    harmless = {Outcome.JOIN, Outcome.WAIT, Outcome.SPLIT_MEMORY}
    for source, target, journal in everything():
        if source.split or target.split:
            assert decide_outcome(source, target, journal) in harmless, (source, target)


def test_a_domain_of_another_operation_at_the_target_counts_as_none() -> None:
    for source, target, journal in everything():
        if not target.ours and target.power is not Power.UNREACHABLE:
            assert decide_outcome(source, target, journal) is decide_outcome(source, ABSENT, journal)

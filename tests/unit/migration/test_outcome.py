"""decide_outcome over the whole product of what two hosts can show."""

import dataclasses
from functools import cache
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
WAS_PAUSED = Journalled(guest_ran=False)
HELD_APART = Journalled(split=True)

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
ARRIVED = Sight(power=Power.RUNNING, persistent=True)
ARRIVED_PAUSED = Sight(power=Power.PAUSED, persistent=True)
ARRIVED_SHUT_DOWN = Sight(power=Power.SHUTOFF, why=Why.SHUTDOWN, persistent=True)
ARRIVED_OFF = Sight(power=Power.SHUTOFF, persistent=True)
ARRIVED_CRASHED = Sight(power=Power.CRASHED, why=Why.CRASHED, persistent=True)
FINISHING = Sight(power=Power.PAUSED, why=Why.MIGRATION, job=Job.IN, persistent=True)


def all_sights(*, persistent: tuple[bool, ...] = (False,)) -> list[Sight]:
    """UNREACHABLE and ABSENT once: they carry no more."""
    shown = [power for power in Power if power not in (Power.UNREACHABLE, Power.ABSENT)]
    return [UNREACHABLE, ABSENT] + [
        Sight(power=power, why=why, job=job, ours=ours, persistent=defined)
        for power, why, job, ours, defined in product(shown, Why, Job, (True, False), persistent)
    ]


@cache
def everything() -> list[tuple[Sight, Sight, Journalled, Outcome]]:
    """The whole product, judged. A source always has a persistent definition, and it means nothing there."""
    journals = [
        Journalled(source_succeeded=succeeded, guest_ran=ran, split=split)
        for succeeded, ran, split in product((False, True), repeat=3)
    ]
    cases = product(all_sights(), all_sights(persistent=(True, False)), journals)
    return [
        (source, target, journal, decide_outcome(source, target, journal))
        for source, target, journal in cases
    ]


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
    (MIGRATED, INCOMING, Outcome.WAIT),
    (MIGRATED, SHUT_DOWN, Outcome.MOVED),
    (MIGRATED, CRASHED, Outcome.MOVED),
    (PAUSED, ABSENT, Outcome.STAYED),
    (PAUSED, UNREACHABLE, Outcome.WAIT),
    (SWITCHING, ABSENT, Outcome.STAYED),
    (SWITCHING, INCOMING, Outcome.WAIT),
    (PAUSED, INCOMING, Outcome.WAIT),
    (SWITCHING, PAUSED, Outcome.STAYED),
    (CRASHED, UNREACHABLE, Outcome.WAIT),
    (SHUT_DOWN, UNREACHABLE, Outcome.WAIT),
    (ABSENT, ABSENT, Outcome.GUEST_LOST),
    (RUNNING, OTHERS, Outcome.STAYED),
    (MIGRATED, OTHERS, Outcome.GUEST_LOST),
    (DIED, INCOMING, Outcome.WAIT),
    # A guest that was received to its end is there, whatever became of it and whatever the source calls its
    # own copy: a restart of libvirtd or of the host turns "migrated" into "unknown".
    (SHUTOFF, ARRIVED_PAUSED, Outcome.MOVED),
    (SHUTOFF, ARRIVED_SHUT_DOWN, Outcome.MOVED),
    (SHUTOFF, ARRIVED_CRASHED, Outcome.MOVED),
    (SHUTOFF, ARRIVED_OFF, Outcome.MOVED),
    (SHUT_DOWN, ARRIVED_PAUSED, Outcome.MOVED),
    (CRASHED, ARRIVED_PAUSED, Outcome.MOVED),
    (ABSENT, ARRIVED_SHUT_DOWN, Outcome.MOVED),
    (SWITCHING, ARRIVED_PAUSED, Outcome.MOVED),
    (SWITCHING, ARRIVED_SHUT_DOWN, Outcome.MOVED),
    (PAUSED, ARRIVED_PAUSED, Outcome.MOVED),
    (SWITCHING, FINISHING, Outcome.WAIT),
    (SHUTOFF, FINISHING, Outcome.WAIT),
    (SHUT_DOWN, FINISHING, Outcome.WAIT),
    (SWITCHING_OUT, ARRIVED_PAUSED, Outcome.JOIN),
    (UNREACHABLE, ARRIVED, Outcome.MOVED),
    (UNREACHABLE, ARRIVED_PAUSED, Outcome.WAIT),
    # libvirt resumed the source, because it never heard the target's last word.
    (RUNNING, ARRIVED, Outcome.SPLIT),
    (RUNNING, ARRIVED_PAUSED, Outcome.SPLIT),
    (RUNNING, ARRIVED_SHUT_DOWN, Outcome.SPLIT),
    (RUNNING, ARRIVED_CRASHED, Outcome.STAYED),
    (RUNNING, ARRIVED_OFF, Outcome.STAYED),
]


@pytest.mark.parametrize(("source", "target", "outcome"), TABLE)
def test_the_table_of_the_design_holds(source: Sight, target: Sight, outcome: Outcome) -> None:
    assert decide_outcome(source, target, NOT_SAID) is outcome


def test_every_pair_of_sights_has_an_outcome() -> None:
    assert {type(outcome) for *_, outcome in everything()} == {Outcome}


def test_every_outcome_is_reached() -> None:
    assert {outcome for *_, outcome in everything()} == set(Outcome)


def test_ownership_moves_only_to_a_target_that_shows_our_copy() -> None:
    for source, target, _, outcome in everything():
        if outcome is Outcome.MOVED:
            assert target.here, (source, target)
            assert not target.split, (source, target)


def test_ownership_never_moves_away_from_a_source_that_runs_the_guest() -> None:
    for source, target, _, outcome in everything():
        if source.here and source.power is Power.RUNNING:
            assert outcome is not Outcome.MOVED, (source, target)


def test_the_source_is_declared_the_holder_only_when_it_shows_the_guest_alive() -> None:
    for source, target, _, outcome in everything():
        if outcome is Outcome.STAYED:
            assert source.alive, (source, target)
            assert source.job is not Job.OUT, (source, target)


def test_what_would_remove_the_targets_copy_is_never_said_of_a_guest_that_has_arrived() -> None:
    """Unless the source runs it, and the target's copy neither lives nor ended by the guest's own doing."""
    undoes = {Outcome.STAYED, Outcome.GUEST_STOPPED, Outcome.GUEST_LOST}
    for source, target, _, outcome in everything():
        if target.arrived and outcome in undoes:
            assert source.here, (source, target)
            assert source.power is Power.RUNNING, (source, target)
            assert not target.alive, (source, target)


def test_a_guest_that_arrived_moves_without_any_word_of_the_source_but_that_it_does_not_run() -> None:
    for source, target, journal, outcome in everything():
        still = source.gone or (source.here and source.power is not Power.RUNNING and source.job is Job.NONE)
        if target.arrived and still and not (source.split or target.split or journal.split):
            assert outcome is Outcome.MOVED, (source, target, journal)


def test_a_copy_that_libvirt_still_receives_is_removed_only_for_a_source_that_surely_ends_it() -> None:
    """It runs the guest, or it saw the guest shut itself down."""
    undoes = {Outcome.STAYED, Outcome.GUEST_STOPPED, Outcome.GUEST_LOST}
    for source, target, _, outcome in everything():
        if target.here and target.power is not Power.RUNNING and target.job is Job.IN and outcome in undoes:
            assert source.power is Power.RUNNING or source.why is Why.SHUTDOWN, (source, target)


def test_only_a_job_of_the_source_can_be_joined() -> None:
    for source, target, _, outcome in everything():
        if outcome is Outcome.JOIN:
            assert source.here, (source, target)
            assert source.job is Job.OUT, (source, target)


def test_after_the_switch_over_an_unreachable_target_is_always_waited_for() -> None:
    for source, target, _, outcome in everything():
        if target is not UNREACHABLE or not source.here or source.power is Power.RUNNING:
            continue
        if source.why is Why.MIGRATION:
            assert outcome in (Outcome.WAIT, Outcome.JOIN), source
            assert outcome is Outcome.WAIT or source.job is Job.OUT, source


def test_a_guest_that_ran_is_never_resumed_from_a_pause_while_its_target_is_unreachable() -> None:
    """Whatever the reason of the pause: the agent pauses a guest so that its move can end."""
    for source, target, journal, outcome in everything():
        paused = source.here and source.power is Power.PAUSED and source.job is not Job.OUT
        if paused and target is UNREACHABLE and journal.guest_ran:
            assert outcome is Outcome.WAIT, (source, journal)


def test_a_guest_that_was_paused_before_needs_no_word_of_a_target_that_nothing_points_to() -> None:
    assert decide_outcome(PAUSED, UNREACHABLE, WAS_PAUSED) is Outcome.STAYED
    assert decide_outcome(SWITCHING, UNREACHABLE, WAS_PAUSED) is Outcome.WAIT
    succeeded = dataclasses.replace(WAS_PAUSED, source_succeeded=True)
    assert decide_outcome(PAUSED, UNREACHABLE, succeeded) is Outcome.WAIT


def test_an_unreachable_source_is_given_up_only_for_a_target_that_runs_or_a_job_that_succeeded() -> None:
    for source, target, journal, outcome in everything():
        if source is UNREACHABLE and outcome is Outcome.MOVED:
            assert target.power is Power.RUNNING or journal.source_succeeded, target


def test_a_paused_guest_moves_once_its_job_is_known_to_have_succeeded() -> None:
    assert decide_outcome(UNREACHABLE, PAUSED, NOT_SAID) is Outcome.WAIT
    assert decide_outcome(UNREACHABLE, PAUSED, SUCCEEDED) is Outcome.MOVED
    assert decide_outcome(SHUTOFF, PAUSED, SUCCEEDED) is Outcome.MOVED
    assert decide_outcome(SHUTOFF, UNREACHABLE, SUCCEEDED) is Outcome.WAIT
    assert decide_outcome(SHUTOFF, ABSENT, SUCCEEDED) is Outcome.GUEST_LOST


def test_split_memory_is_never_called_anything_that_would_destroy_a_half() -> None:
    harmless = {Outcome.JOIN, Outcome.WAIT, Outcome.SPLIT_MEMORY}
    for source, target, _, outcome in everything():
        if source.split or target.split:
            assert outcome in harmless, (source, target)


def test_two_copies_stay_apart_until_an_operator_ends_one_of_them() -> None:
    """The source's guest may end by itself: the paused copy of the target is then not the newer one."""
    for source in (RUNNING, PAUSED, SHUT_DOWN, CRASHED, UNREACHABLE):
        assert decide_outcome(source, ARRIVED_PAUSED, HELD_APART) is Outcome.SPLIT, source
    assert decide_outcome(RUNNING, ABSENT, HELD_APART) is Outcome.STAYED
    assert decide_outcome(RUNNING, ARRIVED_OFF, HELD_APART) is Outcome.STAYED
    assert decide_outcome(SHUTOFF, ARRIVED, HELD_APART) is Outcome.MOVED
    assert decide_outcome(ABSENT, ARRIVED_PAUSED, HELD_APART) is Outcome.MOVED


def test_a_domain_of_another_operation_at_the_target_counts_as_none() -> None:
    for source, target, journal, outcome in everything():
        if not target.ours:
            assert outcome is decide_outcome(source, ABSENT, journal)


def test_a_persistent_definition_at_the_source_says_nothing() -> None:
    for source, target in product(all_sights(), all_sights(persistent=(True, False))):
        defined = dataclasses.replace(source, persistent=True)
        assert decide_outcome(defined, target, NOT_SAID) is decide_outcome(source, target, NOT_SAID)

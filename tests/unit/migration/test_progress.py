"""Percent, ETA and convergence of a live migration."""

from hypothesis import given
from hypothesis import strategies as st
from remuda_core.migration.progress import Sample, does_not_converge, eta_ms, percent

MIB = 1 << 20
sizes = st.integers(min_value=0, max_value=1 << 44)
samples = st.builds(
    Sample,
    memory_total=sizes,
    memory_remaining=sizes,
    disk_total=sizes,
    disk_remaining=sizes,
    rate=sizes,
    dirty_rate=sizes,
)


@given(st.lists(samples, min_size=1, max_size=30))
def test_percent_never_falls_and_never_says_that_it_is_over(history: list[Sample]) -> None:
    shown = 0
    for sample in history:
        now = percent(sample, shown)
        assert shown <= now <= 99
        shown = now


def test_percent_counts_work_done_over_disks_and_memory_together() -> None:
    sample = Sample(memory_total=100, memory_remaining=100, disk_total=300, disk_remaining=100)
    assert percent(sample) == 50


def test_percent_stands_still_when_a_new_pass_over_memory_begins() -> None:
    assert percent(Sample(memory_total=100, memory_remaining=10)) == 90
    assert percent(Sample(memory_total=100, memory_remaining=70), 90) == 90


def test_nothing_to_copy_is_not_a_division_by_zero() -> None:
    assert percent(Sample(memory_total=0, memory_remaining=0)) == 0


def test_eta_divides_memory_by_what_the_rate_gains_on_the_guest() -> None:
    sample = Sample(memory_total=0, memory_remaining=60 * MIB, rate=30 * MIB, dirty_rate=10 * MIB)
    assert eta_ms(sample) == 3000


def test_eta_counts_disks_at_the_full_rate() -> None:
    sample = Sample(
        memory_total=0,
        memory_remaining=20 * MIB,
        disk_remaining=60 * MIB,
        rate=30 * MIB,
        dirty_rate=10 * MIB,
    )
    assert eta_ms(sample) == 3000


def test_a_guest_that_dirties_faster_than_is_sent_does_not_converge_and_has_no_eta() -> None:
    sample = Sample(memory_total=0, memory_remaining=900 * MIB, rate=30 * MIB, dirty_rate=30 * MIB)
    assert does_not_converge(sample)
    assert eta_ms(sample) is None


def test_what_fits_in_the_allowed_pause_converges_whatever_the_guest_does() -> None:
    sample = Sample(memory_total=0, memory_remaining=MIB, rate=30 * MIB, dirty_rate=90 * MIB)
    assert not does_not_converge(sample)
    assert eta_ms(sample) == 0


def test_nothing_is_said_before_a_rate_was_measured() -> None:
    sample = Sample(memory_total=MIB, memory_remaining=MIB)
    assert eta_ms(sample) is None
    assert not does_not_converge(sample)


def test_convergence_is_not_judged_while_disks_are_copied() -> None:
    sample = Sample(
        memory_total=0, memory_remaining=900 * MIB, disk_remaining=1, rate=MIB, dirty_rate=9 * MIB
    )
    assert not does_not_converge(sample)


@given(samples)
def test_an_eta_is_never_negative_and_excludes_non_convergence(sample: Sample) -> None:
    eta = eta_ms(sample)
    assert eta is None or eta >= 0
    assert not (does_not_converge(sample) and eta is not None)

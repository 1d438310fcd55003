"""Medians and ratios of a few runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remuda_bench.spread import Spread, ratios, spread

VALUES = st.lists(st.floats(min_value=0.001, max_value=1e6), min_size=1, max_size=20)


def test_a_spread_is_the_middle_and_both_ends() -> None:
    assert spread([5.0, 1.0, 3.0]) == Spread(median=3.0, least=1.0, most=5.0, count=3)


def test_the_median_of_an_even_number_lies_between_the_two_in_the_middle() -> None:
    assert spread([4.0, 1.0, 2.0, 100.0]) == Spread(median=3.0, least=1.0, most=100.0, count=4)


def test_what_could_not_be_measured_is_left_out_and_not_taken_for_zero() -> None:
    assert spread([None, 2.0, None]) == Spread(median=2.0, least=2.0, most=2.0, count=1)
    assert spread([None]) is None
    assert spread([]) is None


@given(VALUES)
def test_the_median_is_never_outside_of_what_was_measured(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found.least <= found.median <= found.most
    assert found.count == len(values)


@given(VALUES)
def test_a_tool_is_as_fast_as_itself(values: list[float]) -> None:
    assert ratios(values, values) == Spread(median=1.0, least=1.0, most=1.0, count=len(values))


def test_ratios_are_taken_run_by_run_and_not_of_the_medians() -> None:
    # The machine was slow in the second run, for both.
    found = ratios([10.0, 100.0, 12.0], [10.0, 100.0, 10.0])
    assert found == Spread(median=1.0, least=1.0, most=1.2, count=3)


def test_a_run_without_one_of_its_values_has_no_ratio() -> None:
    assert ratios([1.0, None, 3.0], [None, 2.0, 1.5]) == Spread(median=2.0, least=2.0, most=2.0, count=1)
    assert ratios([1.0], [0.0]) is None


def test_unequal_numbers_of_runs_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0], [])

"""The filter grammar."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remuda_api.listing.filters import Term, parse_filter
from remuda_core.errors import Reason, RemudaError

FIELDS = ("state", "host", "labels.")


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", ()),
        ("  ", ()),
        ("state = RUNNING", (Term("state", "RUNNING"),)),
        ("state=RUNNING", (Term("state", "RUNNING"),)),
        (
            'state = RUNNING AND host = "hosts/a b"',
            (Term("state", "RUNNING"), Term("host", "hosts/a b")),
        ),
        (r'labels.x = "a\"b\\c"', (Term("labels.x", 'a"b\\c'),)),
        ('state = "AND"', (Term("state", "AND"),)),
    ],
)
def test_a_filter_is_terms_joined_by_and(text: str, terms: tuple[Term, ...]) -> None:
    assert parse_filter(text, FIELDS).terms == terms


@pytest.mark.parametrize(
    "text",
    [
        "state",
        "state =",
        "= RUNNING",
        "state = = RUNNING",
        "state = RUNNING AND",
        "state = RUNNING host = a",
        "state = RUNNING OR host = a",
        '"state" = RUNNING',
        'state = "RUNNING',
        "colour = red",
        "labels. = x",
        "state.x = y",
        "state = " + "x" * 5000,
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(RemudaError) as caught:
        parse_filter(text, FIELDS)
    assert caught.value.reason is Reason.FILTER_INVALID


@given(st.text(max_size=60))
def test_any_value_can_be_asked_for_in_quotes(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    assert parse_filter(f'host = "{quoted}"', FIELDS).terms == (Term("host", value),)


@given(st.text(max_size=200))
def test_no_text_does_worse_than_being_refused(text: str) -> None:
    with contextlib.suppress(RemudaError):
        parse_filter(text, FIELDS)


def test_every_term_has_to_hold_and_a_missing_field_never_does() -> None:
    wanted = parse_filter("state = A AND labels.x = 1", FIELDS)
    assert wanted.holds({"state": "A", "labels.x": "1"}.get)
    assert not wanted.holds({"state": "A"}.get)
    assert parse_filter("", FIELDS).holds(lambda _: None)

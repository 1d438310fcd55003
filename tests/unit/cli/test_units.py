"""Numbers for people."""

from datetime import UTC, datetime, timedelta

import pytest
from remuda_cli.output.units import (
    human_age,
    human_bytes,
    human_ms,
    human_seconds,
    parse_bytes,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (512 << 20, "512.0 MiB"),
        (3 << 50, "3.0 PiB"),
        (3 << 60, "3072.0 PiB"),
    ],
)
def test_bytes_are_said_in_the_unit_that_fits(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (75, "1 min 15 s"),
        (3600, "1 h"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_never_say_sixty_of_something(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_short_durations_are_milliseconds() -> None:
    assert human_ms(41) == "41 ms"
    assert human_ms(1400) == "1.4 s"


def test_an_age_is_one_unit_and_never_negative() -> None:
    now = datetime(2024, 1, 1, tzinfo=UTC)
    assert human_age(now - timedelta(seconds=59), now=now) == "59s"
    assert human_age(now - timedelta(hours=3, minutes=59), now=now) == "3h"
    assert human_age(now + timedelta(seconds=5), now=now) == "0s"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25)],
)
def test_a_duration_is_read_with_or_without_units(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5 minutes", "-5s", "1h30", "1x"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("512 B", 512), ("500GiB", 500 << 30), ("10g", 10 << 30), ("1.5TB", 3 << 39)],
)
def test_sizes_of_people_are_binary(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1 XiB", "GiB", "1iB", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)

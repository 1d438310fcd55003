"""Who is asked for damaged chunks, in which order, and how often."""

from hypothesis import given
from hypothesis import strategies as st
from remuda_core.ids import HostId, ImageId
from remuda_scheduler.repairing.backoff import Backoff
from remuda_scheduler.repairing.choosing import MOST_HOSTS, by_image, hosts_to_ask

HOSTS = [HostId(f"host-{number:02}") for number in range(50)]


def test_hosts_with_guests_of_the_image_come_first_and_those_that_are_not_up_not_at_all() -> None:
    up, having = HOSTS[:5], [HOSTS[3], HOSTS[1], HOSTS[40]]
    assert hosts_to_ask(up, having, 0) == [HOSTS[1], HOSTS[3], HOSTS[0], HOSTS[2], HOSTS[4]]


@given(st.integers(0, 50), st.sets(st.sampled_from(HOSTS), max_size=50))
def test_a_round_is_bounded_and_every_host_comes_in_its_turn(count: int, having: set[HostId]) -> None:
    up = HOSTS[:count]
    asked: set[HostId] = set()
    rounds = 0
    for rounds in range(2 * len(HOSTS)):
        now = hosts_to_ask(up, having, rounds)
        assert len(now) <= MOST_HOSTS
        assert len(set(now)) == len(now)
        asked |= set(now)
    assert asked == set(up)


def test_the_image_with_the_most_damaged_chunks_is_asked_for_first_and_one_that_is_gone_never() -> None:
    one, two, gone = ImageId("one"), ImageId("two"), ImageId("gone")
    found = by_image({"aa": [one, two], "bb": [two], "cc": [gone]}, {one, two})
    assert list(found.items()) == [(two, ["aa", "bb"]), (one, ["aa"])]


def test_a_new_chunk_is_tried_at_once_and_one_that_was_not_helped_ever_more_rarely() -> None:
    backoff = Backoff(first_seconds=5, longest_seconds=30)
    assert backoff.pause(0) is None
    now, pauses = 100.0, []
    for _ in range(5):
        assert backoff.due(["aa"], now) == ["aa"]
        backoff.tried("aa", now)
        assert backoff.due(["aa"], now) == []
        pause = backoff.pause(now)
        assert pause is not None
        pauses.append(pause)
        now += pause
    assert pauses == [5, 10, 20, 30, 30]
    assert backoff.rounds("aa") == 5
    backoff.tried("aa", now)
    assert backoff.due(["aa", "bb"], now) == ["bb"]


def test_a_chunk_that_was_sound_in_between_is_new_again() -> None:
    backoff = Backoff()
    backoff.due(["aa"], 0)
    backoff.tried("aa", 0)
    assert backoff.due([], 1) == []
    assert backoff.due(["aa"], 2) == ["aa"]
    assert backoff.rounds("aa") == 0


def test_no_number_of_rounds_is_too_many() -> None:
    backoff = Backoff()
    backoff.due(["aa"], 0)
    for _ in range(5000):
        backoff.tried("aa", 0)
    assert backoff.pause(0) == 600

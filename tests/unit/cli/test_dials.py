"""Keys to commands, and places in the queue in words."""

import pytest
from remuda.compute.v1 import migration_pb2 as pb
from remuda.compute.v1.operation_pb2 import QueueProgress
from remuda_cli.dials import HELP, SURE_SECONDS, Dials
from remuda_cli.progress.lines import queue_line


def press(dials: Dials, key: str, *, now: float = 0.0) -> pb.ControlMigrationRequest | None:
    command, _ = dials.press(key, now=now, sent_bytes_per_second=100 << 20)
    return command


def test_bandwidth_starts_from_what_is_sent_and_halves_and_doubles() -> None:
    dials = Dials()
    turned = [press(dials, key) for key in ("b", "b", "B")]
    assert [one.set_bandwidth.mib_per_second for one in turned if one] == [50, 25, 50]


def test_the_longest_pause_halves_and_doubles_within_what_the_api_takes() -> None:
    dials = Dials()
    first = press(dials, "D")
    assert first is not None
    assert first.set_max_downtime.max_downtime_ms == 600
    for key, end in (("D", 60_000), ("d", 1)):
        last = [press(dials, key) for _ in range(20)][-1]
        assert last is not None
        assert last.set_max_downtime.max_downtime_ms == end


def test_the_lowest_bandwidth_is_a_cap_and_never_none() -> None:
    dials = Dials()
    last = [press(dials, "b") for _ in range(12)][-1]
    assert last is not None
    assert last.set_bandwidth.mib_per_second == 1


@pytest.mark.parametrize(
    ("key", "kind"), [("p", "switch_to_post_copy"), ("f", "pause_and_finish"), ("c", "cancel")]
)
def test_what_the_guest_feels_wants_to_be_pressed_twice(key: str, kind: str) -> None:
    dials = Dials()
    assert press(dials, key) is None
    command = press(dials, key, now=SURE_SECONDS)
    assert command is not None
    assert command.WhichOneof("command") == kind
    assert press(dials, key, now=SURE_SECONDS) is None, "once more is a new question"


def test_another_key_or_too_long_a_pause_takes_the_question_back() -> None:
    dials = Dials()
    press(dials, "c")
    press(dials, "d")
    assert press(dials, "c") is None
    assert press(dials, "c", now=SURE_SECONDS + 0.1) is None


def test_other_keys_do_nothing_and_the_help_names_all_that_do() -> None:
    assert all(press(Dials(), key) is None for key in ("x", "", "\x1b", "q"))
    assert all(f"{key} " in HELP for key in ("B", "D", "p", "f", "c", "q"))


@pytest.mark.parametrize(
    ("position", "limit", "words"),
    [
        (1, "outgoing of hosts/1", "1st, host-1 may send 2 at a time"),
        (2, "incoming of hosts/2", "2nd, host-2 may receive 2 at a time"),
        (3, "cluster", "3rd, the cluster may move 2 at a time"),
        (11, "link", "11th, the two hosts may move 2 at a time between them"),
        (22, "phase of the moon", "22nd, phase of the moon: 2 at a time"),
    ],
)
def test_a_place_in_the_queue_in_words(position: int, limit: str, words: str) -> None:
    queue = QueueProgress(position=position, limit=limit, allowed=2)
    assert queue_line(queue, lambda host: host.replace("hosts/", "host-")) == words

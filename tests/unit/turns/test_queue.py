"""Who may start out, over whatever runs and waits."""

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from remuda_core.ids import HostId, OperationId
from remuda_scheduler.turns import queue
from remuda_scheduler.turns.queue import Limits, Move, Place

A, B, C = HostId("a"), HostId("b"), HostId("c")


def move(
    name: str, source: HostId = A, target: HostId = B, *, admitted: int = 0, maintenance: bool = False
) -> Move:
    return Move(
        operation=OperationId(name), source=source, target=target, admitted=admitted, maintenance=maintenance
    )


def places(limits: Limits, running: Sequence[Move], waiting: Sequence[Move]) -> dict[str, Place | None]:
    return {str(name): place for name, place in queue.places(limits, running, waiting).items()}


def test_a_host_sends_two_at_a_time_and_the_rest_wait_in_the_order_of_their_admission() -> None:
    running = [move("one", A, B), move("two", A, C)]
    waiting = [move("four", A, C, admitted=4), move("three", A, B, admitted=3)]
    assert places(Limits(), running, waiting) == {
        "three": Place(position=1, limit="outgoing of hosts/a", allowed=2),
        "four": Place(position=2, limit="outgoing of hosts/a", allowed=2),
    }


def test_another_host_is_not_held_up() -> None:
    running = [move("one", A, B), move("two", A, B)]
    assert places(Limits(incoming_per_host=0), running, [move("three", C, B)]) == {"three": None}
    held = places(Limits(), running, [move("three", C, B)])["three"]
    assert held == Place(position=1, limit="incoming of hosts/b", allowed=2)


def test_maintenance_comes_after_all_that_somebody_asked_for() -> None:
    limits = Limits(outgoing_per_host=1)
    waiting = [move("drain", admitted=1, maintenance=True), move("user", admitted=9)]
    found = places(limits, [], waiting)
    assert found["user"] is None
    assert found["drain"] == Place(position=1, limit="outgoing of hosts/a", allowed=1)


def test_links_and_the_cluster_have_limits_only_where_they_are_set() -> None:
    unlimited = Limits(outgoing_per_host=0, incoming_per_host=0)
    many = [move(str(n), admitted=n) for n in range(9)]
    assert set(places(unlimited, many[:4], many[4:]).values()) == {None}
    link = Limits(outgoing_per_host=0, incoming_per_host=0, link=1)
    found = places(link, [move("one", A, B)], [move("there", A, B), move("back", B, A)])
    assert found == {"there": Place(position=1, limit="link", allowed=1), "back": None}
    cluster = Limits(outgoing_per_host=0, incoming_per_host=0, cluster=1)
    found = places(cluster, [move("one", A, B)], [move("other", C, A)])
    assert found == {"other": Place(position=1, limit="cluster", allowed=1)}


def test_a_move_of_two_busy_hosts_is_not_overtaken_for_ever() -> None:
    """It waits for A; who came later and needs B only does not take its place there."""
    limits = Limits(outgoing_per_host=1, incoming_per_host=1)
    waiting = [move("both", A, B, admitted=1), move("late", C, B, admitted=2)]
    found = places(limits, [move("one", A, C)], waiting)
    assert found["both"] == Place(position=1, limit="outgoing of hosts/a", allowed=1)
    assert found["late"] == Place(position=1, limit="incoming of hosts/b", allowed=1)


# --- whatever runs and waits ---

HOSTS = [HostId(name) for name in "abcd"]
LIMITS = st.builds(
    Limits,
    outgoing_per_host=st.integers(0, 3),
    incoming_per_host=st.integers(0, 3),
    cluster=st.integers(0, 4),
    link=st.integers(0, 2),
)


@st.composite
def moves(draw: st.DrawFn) -> list[Move]:
    count = draw(st.integers(0, 12))
    made = []
    for number in range(count):
        source, target = draw(st.permutations(HOSTS))[:2]
        admitted, maintenance = draw(st.integers(0, 5)), draw(st.booleans())
        made.append(move(str(number), source, target, admitted=admitted, maintenance=maintenance))
    return made


def started(limits: Limits, running: Sequence[Move], waiting: Sequence[Move]) -> list[Move]:
    found = places(limits, running, waiting)
    return [one for one in waiting if found[one.operation] is None]


def over(limits: Limits, running: Sequence[Move]) -> bool:
    """Whether more run than any limit allows."""
    counts = (
        (limits.outgoing_per_host, Counter(one.source for one in running)),
        (limits.incoming_per_host, Counter(one.target for one in running)),
        (limits.link, Counter((one.source, one.target) for one in running)),
        (limits.cluster, Counter("cluster" for _ in running)),
    )
    return any(limit and max(count.values(), default=0) > limit for limit, count in counts)


@given(LIMITS, moves())
def test_no_limit_is_ever_exceeded_and_everybody_gets_their_turn(limits: Limits, every: list[Move]) -> None:
    waiting, running = list(every), list[Move]()
    for _ in range(len(every)):
        begun = started(limits, running, waiting)
        running += begun
        waiting = [one for one in waiting if one not in begun]
        assert not over(limits, running)
        assert running or not waiting, "somebody may start where nothing runs"
        running = running[1:]
    assert not waiting


@given(LIMITS, moves(), st.integers(0, 12))
def test_who_comes_later_changes_nothing_for_who_was_there(
    limits: Limits, all_moves: list[Move], split: int
) -> None:
    ordered = sorted(all_moves, key=lambda one: one.order)
    early = ordered[:split]
    alone, with_others = places(limits, [], early), places(limits, [], ordered)
    assert {one.operation: with_others[one.operation] for one in early} == alone


@given(LIMITS, moves(), moves())
def test_a_place_names_a_limit_that_is_set_and_a_position_that_exists(
    limits: Limits, running: list[Move], waiting: list[Move]
) -> None:
    allowed = {
        "outgoing": limits.outgoing_per_host,
        "incoming": limits.incoming_per_host,
        "link": limits.link,
        "cluster": limits.cluster,
    }
    found = places(limits, running, waiting)
    assert found.keys() == {one.operation for one in waiting}
    for place in found.values():
        if place is not None:
            assert place.allowed == allowed[place.limit.partition(" ")[0]] > 0
            assert 1 <= place.position <= len(waiting)

"""The ladder over recorded job statistics: never back, never what is not allowed, always at an end."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remuda_core.migration import ladder
from remuda_core.migration.commands import Phase
from remuda_core.migration.ladder import Act, Allowed, Look, Rung, Standing, begin, climb

GUEST = 1000
ALL = Allowed(max_downtime_ms=500, timeout_seconds=600, auto_converge=True, post_copy=True, pause=True)
PLAIN = Allowed(max_downtime_ms=500, timeout_seconds=600)


@dataclass(frozen=True, kw_only=True)
class Taken:
    at: float
    act: Act


def play(
    allowed: Allowed, looks: list[Look], standing: Standing | None = None
) -> tuple[list[Taken], list[Standing]]:
    standing = standing or begin(allowed)
    taken, stood = [], [standing]
    for look in looks:
        standing, act = climb(allowed, standing, look)
        stood.append(standing)
        if act is not None:
            taken.append(Taken(at=look.at, act=act))
    return taken, stood


def passes(seconds: float, remaining: list[int], *, start: float = 0.0) -> list[Look]:
    """One pass over memory after the other, `seconds` long, looked at at its beginning and at its end."""
    looks = []
    for number, left in enumerate(remaining):
        at = start + number * seconds
        common = {"phase": Phase.MEMORY, "iteration": number + 1, "sent": number * GUEST}
        looks.append(Look(at=at, memory_remaining=left, **common))  # type: ignore[arg-type]
        looks.append(Look(at=at + 0.9 * seconds, memory_remaining=left // 10, **common))  # type: ignore[arg-type]
    return looks


def rungs(taken: list[Taken]) -> list[Rung]:
    return [one.act.rung for one in taken]


def test_a_job_that_gets_better_is_left_alone() -> None:
    looks = passes(10, [round(1e9 * 0.8**n) for n in range(50)])
    assert play(ALL, looks)[0] == []


def test_within_a_pass_memory_falls_by_itself_and_that_is_no_improvement() -> None:
    taken, _ = play(PLAIN, passes(5, [GUEST] * 20))
    assert rungs(taken)[0] is Rung.DOWNTIME
    assert taken[0].at == 40


def test_a_long_pass_is_not_judged_before_it_ends() -> None:
    looks = [Look(at=t, phase=Phase.MEMORY, iteration=1, memory_remaining=GUEST) for t in range(500)]
    assert play(PLAIN, looks)[0] == []


def test_many_small_improvements_count_as_far_as_they_add_up() -> None:
    slow = [round(1e9 * 0.99**n) for n in range(100)]  # 4 % in five passes, 25 s
    assert play(PLAIN, passes(5, slow))[0] == []
    slower = [round(1e9 * 0.998**n) for n in range(100)]  # 4 % in 21 passes, 105 s
    assert rungs(play(PLAIN, passes(5, slower))[0])[0] is Rung.DOWNTIME


def test_the_downtime_doubles_up_to_what_is_allowed_and_then_stays() -> None:
    taken, stood = play(PLAIN, passes(1, [GUEST] * 200))
    steps = [one.act.downtime_ms for one in taken]
    assert (stood[0].downtime_ms, steps) == (100, [200, 400, 500])
    assert [one.at for one in taken] == [40, 45, 50]


def test_all_rungs_come_in_order_when_nothing_helps() -> None:
    looks = passes(1, [GUEST] * 599)
    taken, stood = play(ALL, looks)
    assert rungs(taken) == [Rung.DOWNTIME] * 3 + [Rung.POST_COPY]
    # Auto-converge is given its time between them.
    assert taken[3].at - taken[2].at == 2 * ladder.STALL_SECONDS
    assert Rung.AUTO_CONVERGE in {one.rung for one in stood}


def test_the_deadline_pauses_where_that_is_allowed_and_aborts_where_not() -> None:
    late = [Look(at=600.0, phase=Phase.MEMORY, iteration=3, memory_remaining=GUEST)]
    assert rungs(play(PLAIN, late)[0]) == [Rung.ABORT]
    assert rungs(play(replace(PLAIN, pause=True), late)[0]) == [Rung.PAUSE]


def test_disks_that_do_not_get_less_wait_for_the_deadline_and_are_told_then() -> None:
    looks = [Look(at=float(t), phase=Phase.DISKS, disk_remaining=GUEST) for t in range(700)]
    taken, _ = play(replace(ALL, pause=False), looks)
    assert rungs(taken) == [Rung.ABORT]
    assert "disks: never less than 1000 bytes left, for 600 s" in taken[0].act.why


def test_what_disks_did_does_not_count_against_memory() -> None:
    disks = [Look(at=float(t), phase=Phase.DISKS, disk_remaining=GUEST) for t in range(100)]
    taken, _ = play(PLAIN, [*disks, *passes(1, [GUEST] * 60, start=100)])
    assert taken[0].at == 140


def test_a_paused_guest_of_which_nothing_is_sent_goes_on_at_the_source() -> None:
    looks = [Look(at=600.0 + t, phase=Phase.MEMORY, iteration=3, sent=5) for t in range(300)]
    taken, _ = play(replace(PLAIN, pause=True), looks)
    assert [(one.act.rung, one.at) for one in taken] == [(Rung.PAUSE, 600), (Rung.ABORT, 720)]


def test_a_paused_guest_that_is_sent_too_slowly_goes_on_at_the_source() -> None:
    looks = [Look(at=600.0 + t, phase=Phase.MEMORY, iteration=3, sent=t) for t in range(1300)]
    taken, _ = play(replace(PLAIN, pause=True), looks)
    assert taken[-1].act.rung is Rung.ABORT
    assert taken[-1].at == 600 + ladder.PAUSE_SECONDS


def test_a_job_in_post_copy_is_left_alone_whatever_its_deadline() -> None:
    looks = [Look(at=float(t), phase=Phase.POST_COPY, iteration=9) for t in range(0, 5000, 10)]
    taken, stood = play(ALL, looks)
    assert taken == []
    assert stood[-1].rung is Rung.POST_COPY


def test_a_restarted_agent_goes_on_from_the_rung_it_had_reached() -> None:
    standing = ladder.restored(rung=Rung.DOWNTIME, since=45.0, downtime_ms=400, at=100.0)
    taken, _ = play(PLAIN, passes(1, [GUEST] * 60, start=100), standing)
    assert [(one.act.downtime_ms, one.at) for one in taken] == [(500, 140)]


def test_a_commanded_downtime_is_where_the_ladder_stands() -> None:
    standing = ladder.commanded_downtime(begin(PLAIN), 2000, 10.0)
    taken, _ = play(replace(PLAIN, max_downtime_ms=2000), passes(1, [GUEST] * 300), standing)
    assert taken == []


def test_a_rung_that_a_command_took_is_not_taken_again() -> None:
    standing = ladder.raised_to(begin(ALL), Rung.POST_COPY, 5.0)
    assert play(ALL, passes(1, [GUEST] * 500), standing)[0] == []
    assert ladder.raised_to(standing, Rung.DOWNTIME, 9.0) == standing


@pytest.mark.parametrize("most", [1, 100, 60_000])
def test_a_job_begins_with_a_short_pause_and_never_with_more_than_is_allowed(most: int) -> None:
    assert begin(replace(PLAIN, max_downtime_ms=most)).downtime_ms == min(most, ladder.FIRST_DOWNTIME_MS)


# Whatever is seen ----------------------------------------------------------------------------

allowances = st.builds(
    Allowed,
    max_downtime_ms=st.integers(1, 60_000),
    timeout_seconds=st.floats(1, 2000),
    auto_converge=st.booleans(),
    post_copy=st.booleans(),
    pause=st.booleans(),
)


@st.composite
def histories(draw: st.DrawFn, *, split: bool = True) -> list[Look]:
    """Any phases in any order, with gaps as a hypervisor that does not answer leaves them."""
    phases = [phase for phase in Phase if split or phase not in (Phase.POST_COPY, Phase.FINISHING)]
    at, iteration, looks = 0.0, 0, []
    for _ in range(draw(st.integers(1, 60))):
        at += draw(st.floats(0.1, 90))
        iteration += draw(st.integers(0, 3))
        looks.append(
            Look(
                at=at,
                phase=draw(st.sampled_from(phases)),
                iteration=iteration,
                memory_remaining=draw(st.integers(0, 1 << 40)),
                disk_remaining=draw(st.integers(0, 1 << 40)),
                sent=draw(st.integers(0, 1 << 40)),
            )
        )
    return looks


@given(allowances, histories())
def test_it_never_goes_back_a_rung_nor_shortens_the_pause(allowed: Allowed, looks: list[Look]) -> None:
    taken, stood = play(allowed, looks)
    assert [one.rung for one in stood] == sorted(one.rung for one in stood)
    assert [one.downtime_ms for one in stood] == sorted(one.downtime_ms for one in stood)
    assert rungs(taken) == sorted(rungs(taken))


@given(allowances, histories())
def test_it_never_uses_what_is_not_allowed(allowed: Allowed, looks: list[Look]) -> None:
    taken, stood = play(allowed, looks)
    seen_in_post_copy = any(look.phase in (Phase.POST_COPY, Phase.FINISHING) for look in looks)
    for one in taken:
        assert one.act.rung is not Rung.POST_COPY or allowed.post_copy
        assert one.act.rung is not Rung.PAUSE or allowed.pause
        assert one.act.rung is not Rung.DOWNTIME or one.act.downtime_ms <= allowed.max_downtime_ms
        assert one.act.rung not in (Rung.PAUSE, Rung.ABORT) or one.at >= allowed.timeout_seconds
    assert max(one.downtime_ms for one in stood) <= allowed.max_downtime_ms
    if not allowed.post_copy and not seen_in_post_copy:
        assert Rung.POST_COPY not in {one.rung for one in stood}
    if not allowed.auto_converge:
        assert Rung.AUTO_CONVERGE not in {one.rung for one in stood}


@given(allowances, histories(split=False))
def test_it_ends_by_the_deadline_and_the_bound(allowed: Allowed, looks: list[Look]) -> None:
    last = looks[-1]
    late = allowed.timeout_seconds + last.at
    ends = [
        *looks,
        replace(last, at=late, phase=Phase.MEMORY),
        # A second more than the bound: sums of floats are not exact.
        replace(last, at=late + ladder.PAUSE_SECONDS + 1, phase=Phase.MEMORY, sent=1 << 41),
    ]
    taken, stood = play(allowed, ends)
    assert stood[-1].rung is Rung.ABORT
    assert rungs(taken).count(Rung.ABORT) == 1


@given(allowances, histories())
def test_in_post_copy_nothing_is_done(allowed: Allowed, looks: list[Look]) -> None:
    standing = begin(allowed)
    for look in looks:
        standing, act = climb(allowed, standing, look)
        if look.phase in (Phase.POST_COPY, Phase.FINISHING):
            assert act is None

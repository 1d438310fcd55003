"""The ladder over what the source of a real migration saw, each line of stalled_job.jsonl a look.

A guest that starts a process now and then, sent at 6 MiB/s at first, and at 2 MiB/s from the end of the first
pass on. Its agent took 5 s for a stall and began with 1 ms; 4 ms, auto-converge and post-copy were allowed.
"""

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from remuda_core.migration.commands import Phase
from remuda_core.migration.ladder import Act, Allowed, Look, Pace, Rung, Standing, begin, climb

RECORDING = Path(__file__).with_name("stalled_job.jsonl")
ALLOWED = Allowed(
    max_downtime_ms=4,
    timeout_seconds=3600,
    auto_converge=True,
    post_copy=True,
    pace=Pace(first_downtime_ms=1, stall_seconds=5),
)


def recorded() -> list[Look]:
    lines = (json.loads(line) for line in RECORDING.read_text().splitlines())
    return [
        Look(
            at=elapsed / 1000,
            phase=Phase(phase),
            iteration=iteration,
            memory_remaining=memory,
            disk_remaining=disk,
            sent=sent,
        )
        for elapsed, phase, iteration, memory, disk, sent in lines
    ]


LOOKS = recorded()
BEFORE_POST_COPY = [look for look in LOOKS if look.phase is not Phase.POST_COPY]


def play(allowed: Allowed, looks: list[Look]) -> tuple[list[tuple[float, Act]], list[Standing]]:
    standing, taken, stood = begin(allowed), [], []
    for look in looks:
        standing, act = climb(allowed, standing, look)
        stood.append(standing)
        if act is not None:
            taken.append((look.at, act))
    return taken, stood


def test_the_rungs_are_those_that_the_agent_took() -> None:
    taken, stood = play(ALLOWED, LOOKS)
    assert [(act.rung, act.downtime_ms) for _, act in taken] == [
        (Rung.DOWNTIME, 2),
        (Rung.DOWNTIME, 4),
        (Rung.POST_COPY, 0),
    ]
    assert Rung.AUTO_CONVERGE in {one.rung for one in stood}
    begun = next(look.at for look in LOOKS if look.phase is Phase.POST_COPY)
    assert 0 <= begun - taken[-1][0] < 5, "what it did then is seen soon after"


def test_the_first_pass_takes_its_time_and_is_no_stall() -> None:
    second = next(look.at for look in LOOKS if look.iteration >= 2)
    taken, _ = play(ALLOWED, LOOKS)
    assert second > 5
    assert taken[0][0] >= second + 5


def test_with_the_usual_patience_half_a_minute_is_no_stall_either() -> None:
    taken, _ = play(replace(ALLOWED, pace=Pace()), BEFORE_POST_COPY)
    assert taken == []


def test_its_deadline_pauses_or_aborts_it() -> None:
    for pause, rung in ((True, Rung.PAUSE), (False, Rung.ABORT)):
        taken, _ = play(replace(ALLOWED, timeout_seconds=20, pause=pause, post_copy=False), BEFORE_POST_COPY)
        at, act = taken[-1]
        assert (act.rung, 20 <= at < 22) == (rung, True)
        assert "memory: never less than" in act.why


allowances = st.builds(
    Allowed,
    max_downtime_ms=st.integers(1, 1000),
    timeout_seconds=st.floats(1, 60),
    auto_converge=st.booleans(),
    post_copy=st.booleans(),
    pause=st.booleans(),
    pace=st.builds(Pace, first_downtime_ms=st.integers(1, 100), stall_seconds=st.floats(0.1, 50)),
)


@given(allowances, st.sets(st.sampled_from(range(len(BEFORE_POST_COPY)))))
def test_looks_that_were_missed_lead_to_nothing_that_is_not_allowed_and_to_no_step_back(
    allowed: Allowed, missed: set[int]
) -> None:
    looks = [look for number, look in enumerate(BEFORE_POST_COPY) if number not in missed]
    taken, stood = play(allowed, looks)
    assert [one.rung for one in stood] == sorted(one.rung for one in stood)
    assert [one.downtime_ms for one in stood] == sorted(one.downtime_ms for one in stood)
    for at, act in taken:
        assert act.rung is not Rung.POST_COPY or allowed.post_copy
        assert act.rung is not Rung.PAUSE or allowed.pause
        assert act.rung is not Rung.DOWNTIME or act.downtime_ms <= allowed.max_downtime_ms
        assert (at >= allowed.timeout_seconds) == (act.rung in (Rung.PAUSE, Rung.ABORT))
    late = [look for look in looks if look.at >= allowed.timeout_seconds]
    assert not late or stood[-1].rung >= Rung.PAUSE

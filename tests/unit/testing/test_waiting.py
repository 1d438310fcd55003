"""Bounded waits."""

import time
from collections.abc import Iterator

import pytest
from remuda_core.testing.waiting import wait_for, wait_for_sync

EMPTY: dict[str, str] = {}


async def test_it_returns_the_first_true_answer() -> None:
    answers = iter([None, "", "found", "later"])
    assert await wait_for(lambda: next(answers), timeout=5) == "found"
    more = iter([0, 7])
    assert wait_for_sync(lambda: next(more), timeout=5) == 7


async def test_a_coroutine_function_may_be_the_condition() -> None:
    answers = iter([False, True])

    async def condition() -> bool:
        return next(answers)

    assert await wait_for(condition, timeout=5) is True


async def test_the_time_over_it_tells_what_was_seen_last() -> None:
    with pytest.raises(TimeoutError, match=r"0\.02 s; last seen: \['two hosts'\]"):
        await wait_for(lambda: None, timeout=0.02, last_status=lambda: ["two hosts"])
    with pytest.raises(TimeoutError, match="last seen: 0"):
        wait_for_sync(lambda: 0, timeout=0.02)


async def test_a_condition_that_hangs_does_not_outlast_the_limit() -> None:
    async def condition() -> bool:
        await wait_for(lambda: False, timeout=60)
        return True

    before = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not within 0\.05 s"):
        await wait_for(condition, timeout=0.05)
    assert time.monotonic() - before < 5


async def test_exceptions_end_it_unless_they_are_to_be_ignored() -> None:
    answers: Iterator[Exception | str] = iter([ConnectionError("refused"), "up"])

    def condition() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await wait_for(condition, timeout=5, ignoring=(ConnectionError,)) == "up"
    with pytest.raises(KeyError):
        wait_for_sync(lambda: EMPTY["x"], timeout=5, ignoring=(ConnectionError,))
    with pytest.raises(TimeoutError, match="KeyError"):
        wait_for_sync(lambda: EMPTY["x"], timeout=0.02, ignoring=(KeyError,))

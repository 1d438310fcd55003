"""Calls that hang: the ones after them go on, and what is given up is given up."""

import asyncio
import threading
import time

import pytest
from remuda_agent.bounded_calls import BoundedCalls
from remuda_core.errors import Reason, RemudaError


async def test_result_and_exception_come_back() -> None:
    calls = BoundedCalls("t", most=1)
    assert await calls.call(lambda: 7, seconds=5) == 7
    with pytest.raises(ZeroDivisionError):
        await calls.call(lambda: 1 // 0, seconds=5)
    assert await calls.call(lambda: 8, seconds=5) == 8


async def test_a_call_that_hangs_is_given_up_and_does_not_keep_the_next_one_waiting() -> None:
    calls, hang = BoundedCalls("t", most=2), threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        await calls.call(lambda: hang.wait(30), seconds=0.1)
    assert await calls.call(lambda: 7, seconds=5) == 7
    assert time.monotonic() - started < 5
    hang.set()


async def test_when_too_many_hang_the_next_is_refused_until_one_comes_back() -> None:
    calls, hang = BoundedCalls("name server", most=1), threading.Event()
    with pytest.raises(TimeoutError):
        await calls.call(lambda: hang.wait(30), seconds=0.05)
    with pytest.raises(RemudaError, match="name server") as refused:
        await calls.call(lambda: 7, seconds=5)
    assert refused.value.reason is Reason.UNAVAILABLE
    hang.set()
    async with asyncio.timeout(10):
        while True:
            try:
                assert await calls.call(lambda: 7, seconds=5) == 7
                break
            except RemudaError:
                await asyncio.sleep(0.01)

"""Bounded waits that say, when they fail, what they last saw."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.1


@overload
async def wait_for(
    condition: Callable[[], Awaitable[T | None]],
    *,
    timeout: float,
    last_status: Callable[[], object] | None = None,
    ignoring: tuple[type[Exception], ...] = (),
) -> T: ...


@overload
async def wait_for(
    condition: Callable[[], T | None],
    *,
    timeout: float,
    last_status: Callable[[], object] | None = None,
    ignoring: tuple[type[Exception], ...] = (),
) -> T: ...


async def wait_for(
    condition: Callable[[], Any],
    *,
    timeout: float,
    last_status: Callable[[], object] | None = None,
    ignoring: tuple[type[Exception], ...] = (),
) -> Any:
    """The first true answer of `condition`, which may be a coroutine function.

    `timeout` is in seconds; TimeoutError carries `last_status()`, or else the condition's last answer.
    Exceptions of the kinds in `ignoring` count as "not yet".
    """
    watch = _Watch(timeout, last_status)
    while True:
        try:
            async with asyncio.timeout(watch.remaining()):
                answer = condition()
                result = await answer if inspect.isawaitable(answer) else answer
            if result:
                return result
            watch.saw(result)
        except TimeoutError as error:
            if watch.remaining() <= 0 or TimeoutError not in ignoring:
                raise watch.failed() from error
        except ignoring as error:
            watch.saw(error)
        await asyncio.sleep(watch.pause())


def wait_for_sync(
    condition: Callable[[], T | None],
    *,
    timeout: float,
    last_status: Callable[[], object] | None = None,
    ignoring: tuple[type[Exception], ...] = (),
) -> T:
    """`wait_for` without an event loop."""
    watch = _Watch(timeout, last_status)
    while True:
        try:
            result = condition()
            if result:
                return result
            watch.saw(result)
        except ignoring as error:
            watch.saw(error)
        time.sleep(watch.pause())


class _Watch:
    def __init__(self, timeout: float, last_status: Callable[[], object] | None) -> None:
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._last_status = last_status
        self._last: object = None
        self._next_pause = _FIRST_PAUSE_SECONDS

    def saw(self, result: object) -> None:
        self._last = result

    def remaining(self) -> float:
        return self._deadline - time.monotonic()

    def pause(self) -> float:
        """How long to wait before the next try. Raises when the time is over."""
        if self.remaining() <= 0:
            raise self.failed()
        pause = min(self._next_pause, self.remaining())
        self._next_pause = min(self._next_pause * 1.5, _LONGEST_PAUSE_SECONDS)
        return pause

    def failed(self) -> TimeoutError:
        status = self._last if self._last_status is None else self._last_status()
        return TimeoutError(f"not within {self._timeout} s; last seen: {status!r}")

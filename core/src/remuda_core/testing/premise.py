"""Scenes that can be over before a test has acted in them, and are then set up again.

A real job goes at its machine's pace: it may end, or leave a phase, while a command to it is on its way. What
was to be proven in that phase is then neither right nor wrong.
"""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

ATTEMPTS = 4

P = ParamSpec("P")
R = TypeVar("R")


class PremiseLost(Exception):
    """What a test builds upon did not last until it acted. Only for what the system under test may do: a test
    that raises it first makes sure that the scene has ended well by itself.
    """


def set_up_again(test: Callable[P, R]) -> Callable[P, R]:
    """Runs a test, a coroutine function or a plain one, anew while its premise is lost.

    AssertionError with what was seen each time, when it is lost ATTEMPTS times. Fixtures are not made anew:
    the test leaves nothing that disturbs its next attempt.
    """
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def attempts(*args: P.args, **kwargs: P.kwargs) -> object:
            lost: list[str] = []
            while len(lost) < ATTEMPTS:
                try:
                    return await test(*args, **kwargs)
                except PremiseLost as error:
                    lost.append(str(error))
            raise _never(lost)

        return cast("Callable[P, R]", attempts)

    @functools.wraps(test)
    def tries(*args: P.args, **kwargs: P.kwargs) -> R:
        lost: list[str] = []
        while len(lost) < ATTEMPTS:
            try:
                return test(*args, **kwargs)
            except PremiseLost as error:
                lost.append(str(error))
        raise _never(lost)

    return tries


def _never(lost: list[str]) -> AssertionError:
    seen = "; ".join(f"attempt {number}: {what}" for number, what in enumerate(lost, start=1))
    return AssertionError(f"the premise never held. {seen}")

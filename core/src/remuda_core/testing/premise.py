"""Scenes that can be over before a test has acted in them, and are then set up again.

A real job goes at its machine's pace: it may end, or leave a phase, while a command to it is on its way. What
was to be proven in that phase is then neither right nor wrong.
"""

import functools
import inspect
import warnings
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
    """Runs a test, a coroutine function or a plain one, anew while its premise is lost, and warns of that.

    AssertionError with what was seen each time, when it is lost ATTEMPTS times. Fixtures are not made anew:
    the test leaves nothing that disturbs its next attempt.
    """
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def attempts(*args: P.args, **kwargs: P.kwargs) -> object:
            lost: list[str] = []
            while True:
                try:
                    return await test(*args, **kwargs)
                except PremiseLost as error:
                    _lost(test.__name__, lost, error)

        return cast("Callable[P, R]", attempts)

    @functools.wraps(test)
    def tries(*args: P.args, **kwargs: P.kwargs) -> R:
        lost: list[str] = []
        while True:
            try:
                return test(*args, **kwargs)
            except PremiseLost as error:
                _lost(getattr(test, "__name__", "a test"), lost, error)

    return tries


def _lost(test: str, lost: list[str], error: PremiseLost) -> None:
    lost.append(f"attempt {len(lost) + 1}: {error}")
    if len(lost) >= ATTEMPTS:
        raise AssertionError(f"the premise never held. {'; '.join(lost)}")
    # A suite's summary shows which scenes do not last on this machine.
    warnings.warn(f"{test} is set up again: {error}", stacklevel=3)

"""A scene that does not last is set up again, a few times; a test that fails fails at once."""

from __future__ import annotations

import pytest
from remuda_core.testing.premise import ATTEMPTS, PremiseLost, set_up_again


@pytest.mark.filterwarnings("ignore:.* is set up again")
def test_a_test_is_run_again_until_its_premise_holds() -> None:
    runs: list[str] = []

    @set_up_again
    def scene(word: str) -> str:
        runs.append(word)
        if len(runs) < ATTEMPTS:
            raise PremiseLost("over")
        return word

    assert scene("job") == "job"
    assert runs == ["job"] * ATTEMPTS


async def test_a_coroutine_is_run_again_too() -> None:
    runs: list[int] = []

    @set_up_again
    async def scene() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise PremiseLost("over")

    with pytest.warns(UserWarning, match="scene is set up again: over"):
        await scene()
    assert len(runs) == 2


@pytest.mark.filterwarnings("ignore:.* is set up again")
async def test_a_premise_that_never_holds_fails_with_what_was_seen() -> None:
    runs: list[int] = []

    def lose() -> None:
        runs.append(1)
        raise PremiseLost(f"over after {len(runs)} s")

    async def lose_later() -> None:
        lose()

    with pytest.raises(AssertionError, match=f"attempt 1: over after 1 s.*attempt {ATTEMPTS}: over after"):
        set_up_again(lose)()
    assert len(runs) == ATTEMPTS
    with pytest.raises(AssertionError, match="the premise never held"):
        await set_up_again(lose_later)()
    assert len(runs) == 2 * ATTEMPTS


def test_a_failure_is_not_tried_again() -> None:
    runs: list[int] = []

    @set_up_again
    def wrong() -> None:
        runs.append(1)
        raise AssertionError("wrong")

    with pytest.raises(AssertionError, match=r"^wrong$"):
        wrong()
    assert len(runs) == 1

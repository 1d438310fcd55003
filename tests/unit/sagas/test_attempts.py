"""When a step is tried again."""

import pytest
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId
from remuda_scheduler.engine.attempts import Attempts
from remuda_scheduler.engine.services import Timing

HOST = HostId("host")
QUICK = Timing(patience=60.0, first_pause=0.0, longest_pause=0.0)
IMPATIENT = Timing(patience=0.0, first_pause=0.0, longest_pause=0.0)


def error(reason: Reason) -> RemudaError:
    return RemudaError(reason, "made to fail")


async def count(attempts: Attempts, reason: Reason, limit: int = 20) -> int:
    for number in range(limit):
        if not await attempts.again(error(reason), HOST):
            return number
    return limit


async def test_what_the_agent_itself_says_has_failed_is_not_repeated() -> None:
    assert await count(Attempts(QUICK, set()), Reason.DISK_FULL) == 0


async def test_a_failure_that_may_pass_is_repeated_as_often_as_the_step_allows() -> None:
    assert await count(Attempts(QUICK, set(), tries=4), Reason.UNAVAILABLE) == 3


async def test_what_must_not_be_given_up_is_repeated_whatever_failed() -> None:
    assert await count(Attempts(QUICK, set(), tries=3, stubborn=True), Reason.HYPERVISOR_ERROR) == 2


@pytest.mark.parametrize("reason", [Reason.STALE_LEADER, Reason.STALE_EPOCH, Reason.CANCELLED])
async def test_what_cannot_change_is_never_repeated(reason: Reason) -> None:
    assert await count(Attempts(QUICK, set(), stubborn=True), reason) == 0


async def test_silence_costs_no_tries_while_patience_lasts() -> None:
    assert await count(Attempts(QUICK, set(), tries=1), Reason.HOST_UNREACHABLE) == 20


async def test_a_host_that_used_up_the_patience_is_not_waited_for_again() -> None:
    silent: set[HostId] = set()
    assert await count(Attempts(IMPATIENT, silent), Reason.HOST_UNREACHABLE) == 0
    assert silent == {HOST}
    assert await count(Attempts(QUICK, silent), Reason.HOST_UNREACHABLE) == 0


async def test_a_copy_in_quarantine_is_waited_for_as_long_as_a_silent_host() -> None:
    silent: set[HostId] = set()
    assert await count(Attempts(QUICK, silent, tries=1), Reason.QUARANTINED) == 20
    assert await count(Attempts(IMPATIENT, silent), Reason.QUARANTINED) == 0
    # It answers: other orders are not to be kept from it.
    assert silent == set()

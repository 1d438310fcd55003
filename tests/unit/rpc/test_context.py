"""Deadlines and request ids that travel."""

import pytest
from remuda_core.auth.caller import ANONYMOUS, Caller, Kind
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc import context

ALICE = Caller(kind=Kind.USER, name="alice")


async def test_outside_a_call_nothing_is_known() -> None:
    assert context.caller() is ANONYMOUS
    assert context.request_id() == ""
    assert context.remaining_seconds() is None
    assert context.timeout_for(5.0) == 5.0


async def test_a_downstream_call_gets_what_the_caller_leaves_less_the_slack() -> None:
    with context.call_scope(caller=ALICE, request_id="id-1", timeout_seconds=2.0):
        assert context.caller() is ALICE
        assert context.timeout_for(1.0) == 1.0
        assert 1.0 < context.timeout_for(60.0, slack_seconds=0.5) <= 1.5
        options = context.outgoing(60.0, metadata=(("a", "b"),))
    assert options["metadata"] == ((context.REQUEST_ID_KEY, "id-1"), ("a", "b"))
    assert options["timeout"] <= 1.9
    assert context.caller() is ANONYMOUS


async def test_without_time_left_no_call_is_made() -> None:
    with (
        context.call_scope(timeout_seconds=0.05),
        pytest.raises(RemudaError, match="deadline") as caught,
    ):
        context.outgoing(5.0)
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED


async def test_work_that_outlives_its_call_keeps_the_id_and_drops_the_deadline() -> None:
    with context.call_scope(request_id="id-1", timeout_seconds=1.0), context.detached():
        assert context.remaining_seconds() is None
        assert context.request_id() == "id-1"


@pytest.mark.parametrize("given", [None, "", "two words", "line\nbreak", "x" * 129, "ünicode"])
def test_an_id_that_cannot_be_logged_as_it_is_is_replaced(given: str | None) -> None:
    found = context.acceptable_request_id(given)
    assert found != given
    assert len(found) == 36


def test_a_printable_id_is_kept() -> None:
    assert context.acceptable_request_id("trace-1/2") == "trace-1/2"

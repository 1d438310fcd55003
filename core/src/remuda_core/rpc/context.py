"""What a call carries along: who calls, its request id, its deadline.

The chain sets these for the task that runs a handler; tasks started from there inherit them. Work that
outlives its call (a saga, an agent's job) starts in a context without them: see `detached`.
"""

import asyncio
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypedDict

from remuda_core.auth.caller import ANONYMOUS, Caller
from remuda_core.errors import Reason, RemudaError

REQUEST_ID_KEY = "x-request-id"
"""Metadata key, in both directions. An id that is no short printable word is replaced by a fresh one."""
_ACCEPTABLE = re.compile(r"[\x21-\x7e]{1,128}\Z")

_caller: ContextVar[Caller] = ContextVar("remuda_caller", default=ANONYMOUS)
_request_id: ContextVar[str] = ContextVar("remuda_request_id", default="")
_deadline: ContextVar[float | None] = ContextVar("remuda_deadline", default=None)


class CallOptions(TypedDict):
    """Keyword arguments of every grpc.aio stub method."""

    timeout: float
    metadata: tuple[tuple[str, str | bytes], ...]


def caller() -> Caller:
    """Who calls; ANONYMOUS outside a call."""
    return _caller.get()


def request_id() -> str:
    """This call's id, empty outside a call."""
    return _request_id.get()


def remaining_seconds() -> float | None:
    """Time left until the caller gives up; None: no limit is known."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - asyncio.get_running_loop().time()


def timeout_for(own_seconds: float, *, slack_seconds: float = 0.1) -> float:
    """min(own, what the caller leaves - slack): the slack is kept for answering.

    Raises RemudaError DEADLINE_EXCEEDED when nothing would be left for the downstream call.
    """
    left = remaining_seconds()
    if left is None:
        return own_seconds
    if left <= slack_seconds:
        raise RemudaError(Reason.DEADLINE_EXCEEDED, "the caller's deadline leaves no time for this call")
    return min(own_seconds, left - slack_seconds)


def outgoing(
    own_seconds: float, *, slack_seconds: float = 0.1, metadata: tuple[tuple[str, str | bytes], ...] = ()
) -> CallOptions:
    """For a call made on behalf of the current one: `await stub.Get(request, **outgoing(5.0))`."""
    identity = ((REQUEST_ID_KEY, request_id() or new_request_id()),)
    return CallOptions(
        timeout=timeout_for(own_seconds, slack_seconds=slack_seconds), metadata=(*identity, *metadata)
    )


def new_request_id() -> str:
    return str(uuid.uuid4())


def acceptable_request_id(given: str | None) -> str:
    """The id that the caller gave, or a fresh one where it could not be logged as it is."""
    return given if given is not None and _ACCEPTABLE.match(given) else new_request_id()


@contextmanager
def call_scope(
    *, caller: Caller | None = None, request_id: str = "", timeout_seconds: float | None = None
) -> Iterator[None]:
    """Sets all three for what runs inside; the chain uses it, and tests of handlers do."""
    now = asyncio.get_running_loop().time() if timeout_seconds is not None else 0.0
    tokens = (
        _caller.set(caller or ANONYMOUS),
        _request_id.set(request_id),
        _deadline.set(None if timeout_seconds is None else now + timeout_seconds),
    )
    try:
        yield
    finally:
        _caller.reset(tokens[0])
        _request_id.reset(tokens[1])
        _deadline.reset(tokens[2])


@contextmanager
def detached() -> Iterator[None]:
    """No deadline of the call inside; caller and request id stay, so that logs still name them."""
    token = _deadline.set(None)
    try:
        yield
    finally:
        _deadline.reset(token)

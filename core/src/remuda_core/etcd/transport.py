"""Calls to etcd: one channel, deadlines, log-in, and what may be sent again.

Who retries what is decided here and nowhere else (no retry policy in the gRPC service config), because only
this place knows whether a call may be repeated and how much of its time is left.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from remuda.etcd.v1 import etcd_pb2 as pb

from remuda_core.etcd import wire
from remuda_core.etcd.config import EtcdConfig
from remuda_core.etcd.errors import (
    AuthenticationFailed,
    EtcdError,
    OutcomeUnknown,
    Unavailable,
    Verdict,
    as_error,
    judge,
)

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

_READY_POLL_SECONDS = 0.02
# More than one: a member that lags behind does not know the newest token yet.
_MAX_RENEWALS = 4


def backoff(*, first: float = 0.05, most: float = 2.0) -> Iterator[float]:
    """Endless pauses in seconds, doubling from `first` to `most`, each shortened at random by up to half."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(pause * 2, most)


class Transport:
    """One channel to all members. Belongs to the event loop in which it was made."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        credentials = config.credentials()
        options = config.channel_options()
        self._channel = (
            grpc.aio.insecure_channel(config.target(), options)
            if credentials is None
            else grpc.aio.secure_channel(config.target(), credentials, options)
        )
        self._stubs: dict[str, Any] = {}
        self._token: str | None = None
        self._login_lock = asyncio.Lock()
        self.closed = False
        self.logins = 0
        """How often a token was fetched."""

    async def close(self) -> None:
        self.closed = True
        await self._channel.close(None)

    @property
    def token(self) -> str | None:
        """The log-in token now in use. May be read from other threads."""
        return self._token

    async def call(
        self,
        method: wire.Method[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout: float | None = None,
    ) -> ResponseT:
        """Send `request`, again where that is harmless, until `timeout` (seconds; the config's when None).

        Raises an EtcdError; `OutcomeUnknown` only for a method that is not repeatable.
        """
        deadline = time.monotonic() + (self.config.timeout_seconds if timeout is None else timeout)
        pauses = backoff()
        renewals = 0
        while True:
            await self._wait_ready(deadline)
            token = await self.login(deadline)
            try:
                return await self._attempt(method, request, deadline, token)
            except grpc.aio.AioRpcError as error:
                details = error.details() or ""
                match judge(error.code(), details):
                    case Verdict.FATAL:
                        raise as_error(error.code(), details) from error
                    case Verdict.TOKEN if renewals == _MAX_RENEWALS or self.config.user is None:
                        raise AuthenticationFailed(details) from error
                    case Verdict.TOKEN:
                        self.forget_token(token)
                        if renewals:
                            await self._pause(next(pauses), deadline, f"{method.path}: {details}")
                        renewals += 1
                    case Verdict.UNKNOWN if not method.repeatable:
                        raise OutcomeUnknown(f"{method.path}: {details or error.code().name}") from error
                    case _:
                        await self._pause(next(pauses), deadline, f"{method.path}: {details}")

    async def _attempt(
        self,
        method: wire.Method[RequestT, ResponseT],
        request: RequestT,
        deadline: float,
        token: str | None,
    ) -> ResponseT:
        remaining = max(deadline - time.monotonic(), 0.001)
        if method.repeatable:
            # Half, so that a member that hangs leaves time to ask another one.
            remaining = min(remaining, max(self.config.timeout_seconds / 2, 0.5))
        metadata = wire.metadata(token=token, needs_leader=method.needs_leader)
        try:
            response: ResponseT = await self._stub(method)(request, timeout=remaining, metadata=metadata)
        except (grpc.aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not self.was_closed():
                raise
            # What was under way when the client was closed is anybody's guess.
            kind = Unavailable if method.repeatable else OutcomeUnknown
            raise kind(f"{method.path}: the client was closed") from error
        return response

    def was_closed(self) -> bool:
        """Whether a CancelledError comes from a closed channel: gRPC raises it as for a cancelled task."""
        task = asyncio.current_task()
        return self.closed and (task is None or not task.cancelling())

    def stream(
        self, method: wire.Method[RequestT, ResponseT], *, token: str | None
    ) -> "grpc.aio.StreamStreamCall[RequestT, ResponseT]":
        """Open a bidirectional stream; errors appear when it is read or written."""
        if self.closed:
            raise Unavailable("the channel to etcd is closed")
        stub = self._stubs.get(method.path)
        if stub is None:
            stub = self._stubs[method.path] = self._channel.stream_stream(
                method.path, method.request.SerializeToString, method.response.FromString
            )
        call: grpc.aio.StreamStreamCall[RequestT, ResponseT] = stub(
            metadata=wire.metadata(token=token, needs_leader=method.needs_leader)
        )
        return call

    def _stub(self, method: wire.Method[RequestT, ResponseT]) -> Any:
        stub = self._stubs.get(method.path)
        if stub is None:
            stub = self._stubs[method.path] = self._channel.unary_unary(
                method.path, method.request.SerializeToString, method.response.FromString
            )
        return stub

    async def login(self, deadline: float | None = None) -> str | None:
        """The token to send, logging in when there is none; None when the config names no user."""
        if self.config.user is None:
            return None
        if self._token is None:
            async with self._login_lock:
                if self._token is None:
                    self._token = await self._authenticate(deadline)
                    self.logins += 1
        return self._token

    def forget_token(self, token: str | None) -> None:
        """etcd refused `token` (they last five minutes by default, and die with a member)."""
        # Somebody else may have renewed it in the meantime: that one is kept.
        if self._token == token:
            self._token = None

    async def _authenticate(self, deadline: float | None) -> str:
        if deadline is None:
            deadline = time.monotonic() + self.config.timeout_seconds
        request = pb.AuthenticateRequest(name=self.config.user or "", password=self.config.password or "")
        pauses = backoff()
        while True:
            try:
                return (await self._attempt(wire.AUTHENTICATE, request, deadline, None)).token
            except grpc.aio.AioRpcError as error:
                details = error.details() or ""
                if judge(error.code(), details) is Verdict.FATAL:
                    raise AuthenticationFailed(details) from error
                # A lost token is no harm, so that a log-in may always be sent again.
                await self._pause(next(pauses), deadline, f"log-in: {details}")

    async def _wait_ready(self, deadline: float) -> None:
        """Wait for a connection, so that a deadline that passes *later* means that the request was sent.

        Polled: cancelling a wait for a state change leaves it pending inside gRPC until the channel closes.
        """
        while (state := self._channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            if self.closed or state is grpc.ChannelConnectivity.SHUTDOWN:
                raise Unavailable("the channel to etcd is closed")
            if time.monotonic() >= deadline:
                raise Unavailable(f"no connection to etcd at {self.config.target()} ({state.name})")
            await asyncio.sleep(_READY_POLL_SECONDS)

    async def _pause(self, seconds: float, deadline: float, what: str) -> None:
        if time.monotonic() + seconds >= deadline:
            raise Unavailable(what)
        await asyncio.sleep(seconds)


def describe(error: BaseException) -> str:
    """One line about an error of a stream, for logs and `last_error`."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) if isinstance(error, EtcdError) else repr(error)

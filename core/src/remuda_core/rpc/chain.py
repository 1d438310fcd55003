"""The one chain that every call of every service passes, in this order:

    identity -> request id -> deadline -> metrics and log -> authorisation -> validation -> error mapping

It is one interceptor that wraps the handler, not seven: the caller's certificate is known only inside a call,
authorisation and validation need the message, and the order stays visible in `_call` and `_admit`. Whatever
a check or a handler raises is mapped in `_fail`, the only place that ends a call with an error.

Handlers of streams read through the request iterator (`context.read` would pass by the checks).
"""

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Optional, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from remuda_core.auth.caller import Kind
from remuda_core.auth.identity import Tokens, identify
from remuda_core.auth.policy import Rule, admit_caller, admit_request
from remuda_core.errors import Reason, RemudaError, permission_denied
from remuda_core.rpc import context as call_context
from remuda_core.rpc.outcome import Call, Context, Outcome, shutting_down
from remuda_core.rpc.validation import Validation

_NO_DEADLINE_SECONDS = 10 * 365 * 86400.0

Parse: TypeAlias = Callable[[bytes], Message]
Handler: TypeAlias = Optional["grpc.RpcMethodHandler[Any, Any]"]


@dataclass(kw_only=True)
class Chain(grpc.aio.ServerInterceptor):
    """See the module. One per server."""

    policy: Mapping[str, Rule]
    outcome: Outcome
    validation: Validation
    tokens: Tokens | None = None
    insecure: bool = False
    """Without TLS the caller names itself in metadata."""
    kinds: Collection[Kind] = frozenset(Kind)
    """Kinds of callers that this server talks to at all, whatever the policy says."""
    default_deadline_seconds: float = 60.0
    """For unary calls whose client set none."""
    endless: Collection[str] = frozenset()
    """Streams without an end of their own: they are ended when the server drains."""
    forwarded: Collection[str] = frozenset()
    """Streams of bytes that this server passes on to another one, which checks them: only the caller's first
    message is parsed, admitted and validated here. The handler gets, and may answer with, serialized ones (so
    may the handler that such a stream of answers begins at).
    """
    _draining: bool = field(default=False, init=False)
    _endless_tasks: set[asyncio.Task[Any]] = field(default_factory=set, init=False)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        # None: no such rpc here. gRPC answers UNIMPLEMENTED.
        return None if handler is None else self._wrapped(handler, handler_call_details.method)

    def drain(self) -> None:
        """End the endless streams with SHUTTING_DOWN; others may finish."""
        self._draining = True
        for task in self._endless_tasks:
            task.cancel()

    def _wrapped(self, handler: Any, method: str) -> Handler:
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        parse = None
        if method in self.forwarded:
            codecs["response_serializer"] = as_it_is(handler.response_serializer)
            if handler.request_streaming:
                parse, codecs["request_deserializer"] = handler.request_deserializer, None
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(handler.stream_stream, method, incoming=True, parse=parse), **codecs
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(handler.unary_stream, method, incoming=False), **codecs
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(handler.stream_unary, method, incoming=True, parse=parse), **codecs
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary, method, incoming=False), **codecs
        )

    def _unary(self, behaviour: Any, method: str, *, incoming: bool, parse: Parse | None = None) -> Any:
        kind = "client_stream" if incoming else "unary"

        async def run(request: Any, context: Context) -> Any:
            async with self._call(method, kind, context) as call:
                return await behaviour(self._incoming(call, request, incoming, parse), context)

        return run

    def _streaming(self, behaviour: Any, method: str, *, incoming: bool, parse: Parse | None = None) -> Any:
        kind = "bidi_stream" if incoming else "server_stream"

        # A coroutine that writes, not an async generator: it serves both styles of handler (the health
        # service writes by itself), and it keeps everything in one task, so that context variables hold.
        async def run(request: Any, context: Context) -> None:
            async with self._call(method, kind, context) as call:
                answers = behaviour(self._incoming(call, request, incoming, parse), context)
                if not inspect.isasyncgen(answers):
                    await answers
                    return
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        await context.write(answer)

        return run

    def _incoming(self, call: Call, request: Any, incoming: bool, parse: Parse | None) -> Any:
        if incoming:
            return self._admitted(call, request, parse)
        self._admit(call, request)
        return request

    async def _admitted(
        self, call: Call, requests: AsyncIterator[Any], parse: Parse | None
    ) -> AsyncIterator[Any]:
        async for request in requests:
            if parse is not None:
                if call.admitted:
                    yield request
                    continue
                request = _parsed(parse, request)
            self._admit(call, request)
            yield request

    def _admit(self, call: Call, request: Message) -> None:
        if call.rule is not None and not call.rule.anyone and not call.admitted:
            admit_request(call.rule, call.caller, request)
        call.admitted = True
        self.validation.check(request)

    @asynccontextmanager
    async def _call(self, method: str, kind: str, context: Context) -> AsyncIterator[Call]:
        call = Call(method=method, kind=kind, context=context)
        self.outcome.begin(call)
        limited = kind == "unary"
        started = time.monotonic()
        error: BaseException | None = None
        metadata = text_metadata(context)
        call.request_id = call_context.acceptable_request_id(metadata.get(call_context.REQUEST_ID_KEY))
        # Each call runs in a task and so in a context of its own: nothing is left behind for the next one.
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        try:
            call.caller = identify(
                auth_context=context.auth_context(),
                metadata=metadata,
                tokens=self.tokens,
                insecure=self.insecure,
            )
            structlog.contextvars.bind_contextvars(principal=call.caller.principal)
            timeout = self._timeout(context, limited=limited)
            with call_context.call_scope(
                caller=call.caller, request_id=call.request_id, timeout_seconds=timeout
            ):
                self._admit_caller(call)
                with self._ended_by_drain(method):
                    async with asyncio.timeout(timeout if limited else None):
                        yield call
        except BaseException as raised:
            error = raised
            if isinstance(raised, asyncio.CancelledError) and self._draining and method in self.endless:
                _uncancel()
                error = shutting_down()
        await self.outcome.conclude(call, error, seconds=time.monotonic() - started)

    def _timeout(self, context: Context, *, limited: bool) -> float | None:
        left: float | None = context.time_remaining()
        if left is None or left > _NO_DEADLINE_SECONDS:
            return self.default_deadline_seconds if limited else None
        if left <= 0:
            raise RemudaError(Reason.DEADLINE_EXCEEDED, "the deadline had passed before the call arrived")
        return left

    def _admit_caller(self, call: Call) -> None:
        call.rule = self.policy.get(call.method)
        admit_caller(call.rule, call.caller, call.method)
        if call.caller.kind not in self.kinds and not (call.rule is not None and call.rule.anyone):
            raise permission_denied(f"this service does not talk to {call.caller.kind}s", method=call.method)

    @contextlib.contextmanager
    def _ended_by_drain(self, method: str) -> Iterator[None]:
        task = asyncio.current_task()
        if method not in self.endless or task is None:
            yield
            return
        if self._draining:
            raise shutting_down()
        self._endless_tasks.add(task)
        try:
            yield
        finally:
            self._endless_tasks.discard(task)


def as_it_is(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """A serializer that leaves what is serialized already."""
    return lambda message: message if isinstance(message, bytes) else serialize(message)


def _parsed(parse: Parse, data: bytes) -> Message:
    try:
        return parse(data)
    except DecodeError as error:
        raise RemudaError(Reason.INVALID_ARGUMENT, "this is no message of the call") from error


def text_metadata(context: Context) -> dict[str, str]:
    """The textual metadata of a call; of a repeated key the first value counts."""
    found: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            found.setdefault(key, value)
    return found


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()

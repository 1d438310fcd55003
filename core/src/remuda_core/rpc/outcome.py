"""How a call ends: error mapping, metrics and log, in one place."""

import asyncio
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import structlog
from grpc_status import rpc_status

from remuda_core.auth.caller import ANONYMOUS, Caller
from remuda_core.auth.policy import Rule
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc import status
from remuda_core.rpc.clipping import clip_message
from remuda_core.telemetry.metrics import Metrics

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(kw_only=True)
class Call:
    """One call while it runs."""

    method: str
    kind: str
    """`unary`, `server_stream`, `client_stream` or `bidi_stream`: go-grpc-middleware's grpc_type."""
    context: Context
    caller: Caller = ANONYMOUS
    request_id: str = ""
    rule: Rule | None = None
    admitted: bool = False
    """Its first message has passed authorisation."""


def shutting_down() -> RemudaError:
    return RemudaError(Reason.SHUTTING_DOWN, "the service is stopping", retry_after_seconds=0.5)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Counts calls, ends them and remembers how they ended."""

    metrics: Metrics

    def begin(self, call: Call) -> None:
        """Before anything can refuse it: whatever is begun is concluded."""
        self.metrics.rpc_started(method=call.method, kind=call.kind)

    async def conclude(self, call: Call, error: BaseException | None, *, seconds: float) -> None:
        """Record the call, then raise what ends it: gRPC's AbortError with the rich status.

        A cancelled call and one that its handler aborted by itself end with their own exception. A handler
        that raises CancelledError although nobody cancelled its call is at fault: something that it waited
        for was cancelled, and gRPC would end the call without any status.
        """
        if error is None:
            self._record(call, _own_code(call), seconds)
            return
        if isinstance(error, grpc.aio.AbortError):
            self._record(call, _own_code(call), seconds)
            raise error
        stray = isinstance(error, asyncio.CancelledError) and not _is_cancelled()
        if not stray and not isinstance(error, Exception):
            self._record(call, grpc.StatusCode.CANCELLED, seconds)
            raise error
        told = status.from_exception(error)
        if told is None:
            log.error("rpc failed with a fault", method=call.method, exc_info=error)
            told = status.internal(call.request_id)
        self._record(call, told.code, seconds, told)
        rich = status.to_status(told, request_id=call.request_id)
        await call.context.abort_with_status(rpc_status.to_status(rich))

    def _record(
        self, call: Call, code: grpc.StatusCode, seconds: float, error: RemudaError | None = None
    ) -> None:
        self.metrics.rpc_handled(method=call.method, kind=call.kind, code=code.name, seconds=seconds)
        facts: dict[str, object] = {"method": call.method, "code": code.name, "seconds": round(seconds, 6)}
        if error is not None:
            message = clip_message(error.message)
            log.info("rpc refused", reason=error.reason.value, message=message, **facts)
        else:
            log.debug("rpc", **facts)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _own_code(call: Call) -> grpc.StatusCode:
    """What the handler set by `abort` or `set_code`; OK when it set nothing."""
    # The annotation says StatusCode, grpc.aio answers with its number, 0 or None when nothing was set.
    code: object = call.context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return status.code_of_number(code if isinstance(code, int) else 0)

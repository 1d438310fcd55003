"""Commands to a migration on their way: taken from any stream, each answered once, whoever still listens.

The book is of an operation, not of a stream: a leader that has lost its stream repeats its commands under
the same ids on the next one, and is told what became of them.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import Message
from remuda.agent.v1.migration_pb2 import MigrateRequest
from remuda.compute.v1.migration_pb2 import CommandResult
from remuda_core.errors import Reason, RemudaError
from remuda_core.migration.commands import Command, Phase, refusal
from remuda_core.rpc.status import to_status

from remuda_agent.migration_ledger import Answered
from remuda_agent.migration_progress import to_phase

_REMEMBERED = 256
_WAITING = 64
"""More than a person at a console ever has; what is beyond is refused."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Order:
    """One command that was taken."""

    command: Command
    request: MigrateRequest
    answer: "asyncio.Future[CommandResult]"


def applied(phase: Phase, observed: str) -> CommandResult:
    return _result(CommandResult.EFFECT_APPLIED, phase, observed)


def deferred(phase: Phase, observed: str) -> CommandResult:
    return _result(CommandResult.EFFECT_DEFERRED_TO_MEMORY_PHASE, phase, observed)


def not_effective(phase: Phase, observed: str) -> CommandResult:
    return _result(CommandResult.EFFECT_NOT_EFFECTIVE, phase, observed)


def refused(phase: Phase, error: RemudaError) -> CommandResult:
    return CommandResult(
        effect=CommandResult.EFFECT_REFUSED, phase=to_phase(phase), error=to_status(error), observed=""
    )


def refusal_of(request: MigrateRequest, error: RemudaError) -> CommandResult:
    """For a command that nobody takes."""
    result = refused(Phase.PREPARING, error)
    result.command_id = request.command_id
    return result


class CommandBook:
    """Of one operation. Open while a migration of it runs or waits for its turn."""

    def __init__(self) -> None:
        self._open = False
        self._known: dict[str, Order] = {}
        self.waiting: list[Order] = []
        """Not yet answered, in order."""

    def open(self) -> None:
        self._open = True

    def submit(self, request: MigrateRequest) -> "asyncio.Future[CommandResult]":
        """A result that will come in any case, without its command_id when it is cancelled with the agent.

        The same id again is the same command; with another body it is refused (REQUEST_ID_REUSED).
        """
        identifier = request.command_id
        known = self._known.get(identifier) if identifier else None
        if known is not None:
            return known.answer if _body(known.request) == _body(request) else _reused(request)
        command = Command(request.WhichOneof("command") or "")
        order = Order(command=command, request=request, answer=asyncio.get_running_loop().create_future())
        if not self._open:
            self.answer(order, refused(Phase.FINISHING, _over(command)))
            return order.answer
        if len(self.waiting) >= _WAITING:
            error = RemudaError(Reason.COMMAND_REFUSED, f"{_WAITING} commands wait already")
            self.answer(order, refused(Phase.PREPARING, error))
            return order.answer
        self.waiting.append(order)
        if identifier:
            self._known[identifier] = order
            self._forget_old()
        return order.answer

    def answer(self, order: Order, result: CommandResult) -> None:
        result.command_id = order.request.command_id
        if order in self.waiting:
            self.waiting.remove(order)
        if not order.answer.done():
            order.answer.set_result(result)

    def restore(self, answers: Iterable[Answered]) -> None:
        """What another life of this agent has answered; a repeated command that came first gets it now."""
        for known in answers:
            identifier = known.request.command_id
            order = self._known.get(identifier)
            if order is None:
                ready: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()
                ready.set_result(known.result)
                command = Command(known.request.WhichOneof("command") or "")
                self._known[identifier] = Order(command=command, request=known.request, answer=ready)
            elif not order.answer.done():
                same = _body(order.request) == _body(known.request)
                self.answer(order, known.result if same else _reused(order.request).result())

    def close(self, ended: "asyncio.Task[object]") -> None:
        """The migration is over: what still waits was a cancel that has had its way, or came too late."""
        self._open = False
        if ended.cancelled():
            for order in self.waiting:
                order.answer.cancel()  # the agent ends; its next life is asked again
                self._known.pop(order.request.command_id, None)
            self.waiting.clear()
            return
        error = ended.exception()
        cancelled = isinstance(error, RemudaError) and error.reason is Reason.CANCELLED
        for order in tuple(self.waiting):
            if order.command is Command.CANCEL and cancelled:
                self.answer(order, applied(Phase.FINISHING, "the job was ended; the guest has not moved"))
            else:
                self.answer(order, refused(Phase.FINISHING, _over(order.command)))

    def _forget_old(self) -> None:
        for identifier in tuple(self._known):
            if len(self._known) <= _REMEMBERED:
                return
            if self._known[identifier].answer.done():
                del self._known[identifier]


def _result(effect: "CommandResult.Effect.ValueType", phase: Phase, observed: str) -> CommandResult:
    return CommandResult(effect=effect, phase=to_phase(phase), observed=observed)


def _over(command: Command) -> RemudaError:
    return refusal(command, Phase.FINISHING, post_copy_allowed=True)


def _body(request: MigrateRequest) -> tuple[str, bytes]:
    kind = request.WhichOneof("command") or ""
    body: Message = getattr(request, kind)
    return kind, body.SerializeToString(deterministic=True)


def _reused(request: MigrateRequest) -> "asyncio.Future[CommandResult]":
    error = RemudaError(
        Reason.REQUEST_ID_REUSED, f"command {request.command_id} was another one", metadata={}
    )
    ready: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()
    ready.set_result(refusal_of(request, error))
    return ready

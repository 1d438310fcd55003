"""Steering migrations: commands come from the api, go to the saga that follows the job, and are answered by
the host that holds it.

    api --ControlMigration--> desk of the operation <--commands, answers-- saga --Migrate--> source's agent

A command stays on its desk until it is answered: when the source's agent was away, it is sent again with the
same id, and the host answers an id that it knows with what came of it. What the operation's end leaves
without an answer is refused; what the end of a term leaves is asked again by the api of the next leader.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field

from remuda.compute.v1.migration_pb2 import CommandResult, ControlMigrationRequest, MigrationProgress
from remuda.compute.v1.migration_pb2 import ControlMigrationResponse as Event
from remuda.compute.v1.operation_pb2 import OperationMetadata, OperationStep
from remuda.scheduler.v1 import live_pb2 as pb
from remuda.store.v1.operation_pb2 import OperationRecord
from remuda_core.errors import Reason, RemudaError, invalid_argument, not_found
from remuda_core.ids import OperationId
from remuda_core.names import operation_name
from remuda_core.rpc.status import to_status

from remuda_scheduler.live.hub import ProgressHub
from remuda_scheduler.store import StoreView
from remuda_scheduler.term import Term

_MOVING = "guest_moved"
"""The step in which a job runs that can be steered (sagas/live_migrate.py)."""
_ACTION = "LiveMigrateInstance"
_REMEMBERED = 256
"""Answers kept per migration, for commands that are sent again."""


@dataclass(slots=True, kw_only=True)
class _Asked:
    command: ControlMigrationRequest
    answer: "asyncio.Future[CommandResult]"


@dataclass(slots=True)
class Desk:
    """Commands to one migration. Implements ports.Steering; one saga reads it, any number of streams ask."""

    attended: bool = False
    """A saga passes commands on."""
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def unanswered(self) -> set[str]:
        """Ids."""
        return {name for name, asked in self._asked.items() if not asked.answer.done()}

    async def ask(self, command: ControlMigrationRequest) -> CommandResult:
        """Waits for the answer. The same id again gets the same one, unless the command is another: that is
        refused. CancelledError: the term is over.
        """
        asked = self._asked.get(command.command_id)
        if asked is not None and asked.command != command:
            return _reused(asked.command.command_id)
        if asked is None:
            asked = _Asked(command=command, answer=asyncio.get_running_loop().create_future())
            self._asked[command.command_id] = asked
            self._forget()
            self._news.set()
        # Others may wait for the same answer.
        return await asyncio.shield(asked.answer)

    async def commands(self) -> AsyncGenerator[ControlMigrationRequest, None]:
        sent: set[str] = set()
        self.attended = True
        try:
            while True:
                self._news.clear()
                for name, asked in list(self._asked.items()):
                    if name not in sent and not asked.answer.done():
                        sent.add(name)
                        yield asked.command
                await self._news.wait()
        finally:
            self.attended = False

    def answer(self, result: CommandResult) -> None:
        asked = self._asked.get(result.command_id)
        if asked is not None and not asked.answer.done():
            asked.answer.set_result(result)

    def refuse_all(self) -> None:
        """The job is over."""
        for name, asked in self._asked.items():
            if not asked.answer.done():
                asked.answer.set_result(_over(name))

    def drop_all(self) -> None:
        """The term is over: the next leader is asked again."""
        for asked in self._asked.values():
            asked.answer.cancel()

    def _forget(self) -> None:
        done = [name for name, asked in self._asked.items() if asked.answer.done()]
        for name in done[: max(0, len(done) - _REMEMBERED)]:
            del self._asked[name]


class ControlHub:
    """The desks of one term. Implements ports.Controls."""

    def __init__(self) -> None:
        self._desks: dict[OperationId, Desk] = {}

    def desk(self, operation_id: OperationId) -> Desk:
        return self._desks.setdefault(operation_id, Desk())

    def finish(self, operation_id: OperationId) -> None:
        desk = self._desks.pop(operation_id, None)
        if desk is not None:
            desk.refuse_all()

    def end_all(self) -> None:
        for desk in self._desks.values():
            desk.drop_all()
        self._desks.clear()


async def control(
    term: Callable[[], Term], requests: AsyncIterator[pb.ControlMigrationRequest]
) -> AsyncGenerator[Event, None]:
    """Progress and answers until the operation ends. Raises what `term` raises, also when the term ends
    first; OPERATION_NOT_FOUND; COMMAND_REFUSED for an operation that is no running migration.
    """
    first = await anext(requests, None)
    if first is None or not first.operation_id:
        raise invalid_argument("operation_id", "the first message names the operation")
    present, operation = term(), OperationId(first.operation_id)
    _require_running(present.store, operation)
    talk = _Talk(operation, present.store, present.controls)
    tasks = [
        asyncio.create_task(talk.listen(requests), name=f"commands to {operation}"),
        asyncio.create_task(talk.watch(present.hub), name=f"progress of {operation}"),
    ]
    try:
        async for event in talk.events():
            yield event
        # Both ways to end look alike here: only the operation's own end is one for the caller.
        term()
    finally:
        await talk.close(tasks)


class _Talk:
    """One stream of ControlMigration."""

    def __init__(self, operation: OperationId, store: StoreView, controls: ControlHub) -> None:
        self._operation = operation
        self._store = store
        self._controls = controls
        self._events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self._asking: set[asyncio.Task[None]] = set()

    async def listen(self, requests: AsyncIterator[pb.ControlMigrationRequest]) -> None:
        try:
            async for request in requests:
                command = request.command
                if command.WhichOneof("command") in (None, "attach", "cancel"):
                    raise invalid_argument("command", "neither attach nor cancel is for the scheduler")
                task = asyncio.create_task(self._ask(command))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
        except Exception as error:
            self._events.put_nowait(error)

    async def watch(self, hub: ProgressHub) -> None:
        async for progress in hub.watch(self._operation):
            if progress.HasField("migration"):
                self._events.put_nowait(Event(progress=progress.migration))
        # The operation's end has answered whatever was open.
        await asyncio.gather(*self._asking, return_exceptions=True)
        self._events.put_nowait(None)

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    async def close(self, tasks: list[asyncio.Task[None]]) -> None:
        mine = [*tasks, *self._asking]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)

    async def _ask(self, command: ControlMigrationRequest) -> None:
        desk = self._controls.desk(self._operation)
        entry = self._store.operations.get(self._store.keys.operation(self._operation))
        refusal = None if entry is None or desk.attended else _refusal(command.command_id, entry.value)
        result = refusal or await desk.ask(command)
        self._events.put_nowait(Event(result=result))


def _require_running(store: StoreView, operation: OperationId) -> None:
    entry = store.operations.get(store.keys.operation(operation))
    if entry is None:
        raise not_found(operation_name(operation))
    record = entry.value
    if record.action != _ACTION:
        raise _refused(f"{operation_name(operation)} is a {record.action}, which cannot be steered", record)
    if record.done:
        raise _refused(f"{operation_name(operation)} is over", record)


def _refusal(command_id: str, record: OperationRecord) -> CommandResult | None:
    """None: the step with the job is going on, or about to."""
    metadata = record.metadata
    undoing = metadata.state == OperationMetadata.STATE_UNDOING
    if metadata.phase == _MOVING and not undoing and not record.done:
        return None
    if undoing or record.done or _moved(metadata):
        return _over(command_id)
    error = RemudaError(
        Reason.COMMAND_REFUSED,
        "nothing is copied yet: the source has no job to steer",
        metadata={"phase": "PREPARING", "step": metadata.phase},
    )
    return refused(command_id, MigrationProgress.PHASE_PREPARING, error)


def _moved(metadata: OperationMetadata) -> bool:
    """Not when the step was undone and another target is tried."""
    newest = next((step for step in reversed(metadata.steps) if step.name == _MOVING), None)
    return newest is not None and newest.state not in (OperationStep.STATE_UNDONE, OperationStep.STATE_OWED)


def refused(command_id: str, phase: "MigrationProgress.Phase.ValueType", error: RemudaError) -> CommandResult:
    return CommandResult(
        command_id=command_id,
        effect=CommandResult.EFFECT_REFUSED,
        phase=phase,
        error=to_status(error),
        observed=error.message,
    )


def _reused(command_id: str) -> CommandResult:
    error = RemudaError(Reason.REQUEST_ID_REUSED, f"command {command_id} was another one")
    return refused(command_id, MigrationProgress.PHASE_PREPARING, error)


def _over(command_id: str) -> CommandResult:
    error = RemudaError(
        Reason.COMMAND_REFUSED, "the copy is over: nothing can be steered", metadata={"phase": "FINISHING"}
    )
    return refused(command_id, MigrationProgress.PHASE_FINISHING, error)


def _refused(message: str, record: OperationRecord) -> RemudaError:
    state = OperationMetadata.State.Name(record.metadata.state).removeprefix("STATE_")
    return RemudaError(
        Reason.COMMAND_REFUSED, message, metadata={"phase": record.metadata.phase, "state": state}
    )

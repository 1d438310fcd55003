"""Steering a migration for one client: over changes of the leader, until the migration is over.

Commands that have no answer are sent again to the next leader under the same id, which the host answers once.
A cancel is not relayed: it is a key in etcd like every cancel, needs no leader, and is answered by how the
operation ended.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

from google.longrunning.operations_pb2 import Operation
from remuda.compute.v1 import migration_pb2 as pb
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_core import names
from remuda_core.auth.caller import Caller
from remuda_core.errors import Reason, RemudaError, invalid_argument
from remuda_core.ids import OperationId
from remuda_core.rpc.status import from_status, to_status

from remuda_api.admission.operations import OperationAdmission
from remuda_api.following import OperationWatcher
from remuda_api.leader import LeaderLink
from remuda_api.reading import Reads
from remuda_api.visibility import migration_shown_to

Request = pb.ControlMigrationRequest
Response = pb.ControlMigrationResponse

_NAMESPACE = uuid.UUID("5b0c4c3e-31f6-4d0f-9a3d-0d1b1f1f9f4b")
_LAST_ANSWERS_SECONDS = 2.0
"""After the operation's end is seen here: for the leader's last answers, which come by another way."""
_MOST_OPEN = 32
"""The host carries them out one after the other."""
_LONGEST_SECONDS = 7 * 24 * 3600.0


class MigrationSteering:
    def __init__(
        self, reads: Reads, admission: OperationAdmission, watcher: OperationWatcher, leader: LeaderLink
    ) -> None:
        self._reads = reads
        self._admission = admission
        self._watcher = watcher
        self._leader = leader

    async def steer(self, requests: AsyncIterator[Request], who: Caller) -> AsyncGenerator[Response, None]:
        """Raises RemudaError INVALID_ARGUMENT when `attach` is not the first message, or comes again;
        MIGRATION_NOT_FOUND; COMMAND_REFUSED for a migration that is over.
        """
        first = await anext(requests, None)
        if first is None or not first.HasField("attach"):
            raise invalid_argument("attach", "the first message says which migration")
        migration = await self._reads.migration(first.attach.name)
        operation = names.parse_operation(migration.operation)
        if (await self._reads.operation_entry(operation)).value.done:
            state = pb.Migration.State.Name(migration.state).removeprefix("STATE_")
            raise RemudaError(
                Reason.COMMAND_REFUSED, f"{migration.name} is over: {state}", metadata={"state": state}
            )
        # Two clients may choose the same ids, also two of one person: without a name of its own a call is
        # one by itself.
        talk = _Talk(operation, f"{who.principal} {first.attach.client_id or uuid.uuid4()}")
        tasks = [
            asyncio.create_task(
                talk.guarded(talk.listen(requests, self._admission, who.principal)), name="commands"
            ),
            asyncio.create_task(talk.guarded(talk.relay(self._leader)), name="to the leader"),
            asyncio.create_task(talk.guarded(self._end(talk, migration.name, who)), name="end"),
        ]
        try:
            while (response := await talk.next()) is not None:
                yield response
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self, talk: "_Talk", name: str, who: Caller) -> None:
        operation = await self._watcher.wait(talk.operation, _LONGEST_SECONDS)
        if not operation.done:
            raise RemudaError(Reason.UNAVAILABLE, "this gateway lost sight of the operation; try another")
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_ANSWERS_SECONDS):
                await talk.all_answered()
        talk.end(operation, migration_shown_to(who, await self._reads.migration(name)))


class _Talk:
    """One stream: commands on their way, answers and the newest progress on theirs."""

    def __init__(self, operation: OperationId, client: str) -> None:
        self.operation = operation
        self._client = client
        self._open: dict[str, Request] = {}
        """Sent to the leader and not answered, by the id it has there."""
        self._theirs: dict[str, str] = {}
        """The client's own id of each."""
        self._answers: dict[str, pb.CommandResult] = {}
        self._cancels: list[str] = []
        self._phase = pb.MigrationProgress.PHASE_PREPARING
        self._asked = asyncio.Event()
        self._answered = asyncio.Event()
        self._results: deque[Response] = deque()
        # A slow reader gets the newest only: figures of an earlier moment are of no use to anybody.
        self._progress: pb.MigrationProgress | None = None
        self._ended = False
        self._fault: Exception | None = None
        self._news = asyncio.Event()

    # --- what the client reads ---

    async def next(self) -> Response | None:
        """None: it was the last. Raises what broke one of the sides."""
        while True:
            if self._results:
                return self._results.popleft()
            if self._fault is not None:
                raise self._fault
            if self._ended:
                return None
            if self._progress is not None:
                progress, self._progress = self._progress, None
                return Response(progress=progress)
            self._news.clear()
            await self._news.wait()

    async def guarded(self, side: Coroutine[Any, Any, None]) -> None:
        """What breaks one side ends the call."""
        try:
            await side
        except Exception as error:
            self._fault = error
            self._news.set()

    # --- what the client says ---

    async def listen(
        self, requests: AsyncIterator[Request], admission: OperationAdmission, principal: str
    ) -> None:
        async for request in requests:
            match request.WhichOneof("command"):
                case "attach":
                    raise invalid_argument("attach", "only the first message attaches")
                case "cancel":
                    self._cancels.append(request.command_id)
                    await admission.cancel(self.operation, principal=principal)
                case _:
                    self._ask(request)

    def _ask(self, request: Request) -> None:
        name = self._name(request)
        self._theirs[name] = request.command_id
        if (known := self._answers.get(name)) is not None:
            self._tell(known)
            return
        if len(self._open) >= _MOST_OPEN:
            why = RemudaError(Reason.COMMAND_REFUSED, f"{_MOST_OPEN} commands wait for their answers already")
            self._put(_refused(request.command_id, self._phase, why))
            return
        command = Request()
        command.CopyFrom(request)
        command.command_id = name
        self._open[name] = command
        self._asked.set()

    def _name(self, request: Request) -> str:
        """Unique among all clients of the migration; the same for a command that a client sends again."""
        if not request.command_id:
            return str(uuid.uuid4())
        body = request.SerializeToString(deterministic=True).hex()
        return str(uuid.uuid5(_NAMESPACE, f"{self._client} {self.operation} {body}"))

    # --- what the leader says ---

    async def commands(self) -> AsyncGenerator[Request, None]:
        """Those without an answer, then each as it comes."""
        sent: set[str] = set()
        while True:
            self._asked.clear()
            for name, command in list(self._open.items()):
                if name not in sent:
                    sent.add(name)
                    yield command
            await self._asked.wait()

    async def relay(self, leader: LeaderLink) -> None:
        async for event in leader.control(self.operation, self.commands):
            if event.HasField("progress"):
                self._progress = event.progress
                self._phase = event.progress.phase
                self._news.set()
            elif event.HasField("result") and event.result.command_id in self._open:
                self._answer(event.result)

    def _answer(self, result: pb.CommandResult) -> None:
        del self._open[result.command_id]
        self._answers[result.command_id] = result
        self._tell(result)
        self._answered.set()

    def _tell(self, result: pb.CommandResult) -> None:
        told = pb.CommandResult()
        told.CopyFrom(result)
        told.command_id = self._theirs[result.command_id]
        self._put(told)

    def _put(self, result: pb.CommandResult) -> None:
        self._results.append(Response(result=result))
        self._news.set()

    # --- the end ---

    async def all_answered(self) -> None:
        while self._open:
            self._answered.clear()
            await self._answered.wait()

    def end(self, operation: Operation, migration: pb.Migration) -> None:
        for name in list(self._open):
            why = RemudaError(Reason.COMMAND_REFUSED, "the migration ended first")
            self._answer(_refused(name, pb.MigrationProgress.PHASE_FINISHING, why))
        for command_id in self._cancels:
            self._put(_of_cancel(command_id, operation, self._phase))
        self._results.append(Response(ended=migration))
        self._ended = True
        self._news.set()


def _of_cancel(
    command_id: str, operation: Operation, phase: "pb.MigrationProgress.Phase.ValueType"
) -> pb.CommandResult:
    metadata = OperationMetadata()
    operation.metadata.Unpack(metadata)
    if metadata.state == OperationMetadata.STATE_CANCELLED:
        return pb.CommandResult(
            command_id=command_id,
            effect=pb.CommandResult.EFFECT_APPLIED,
            phase=phase,
            observed="cancelled and undone; the guest goes on at its source",
        )
    if operation.HasField("error"):
        why = f"the migration had failed before: {from_status(operation.error).message}"
    else:
        why = "it came too late: the guest had moved"
    return _refused(
        command_id, pb.MigrationProgress.PHASE_FINISHING, RemudaError(Reason.COMMAND_REFUSED, why)
    )


def _refused(
    command_id: str, phase: "pb.MigrationProgress.Phase.ValueType", error: RemudaError
) -> pb.CommandResult:
    return pb.CommandResult(
        command_id=command_id,
        effect=pb.CommandResult.EFFECT_REFUSED,
        phase=phase,
        error=to_status(error),
        observed=error.message,
    )

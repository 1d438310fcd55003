"""One operation while it is executed: what the functions of a saga work with."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic

import structlog
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from remuda.agent.v1.agent_pb2 import RunStepRequest, StepOutput
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.operation_pb2 import OperationMetadata, Progress
from remuda.store.v1.instance_pb2 import InstanceRecord, InstanceStatus
from remuda.store.v1.operation_pb2 import Journal, OperationRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.model import KeyValue
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId, ProjectId

from remuda_scheduler.engine import position
from remuda_scheduler.engine.debts import may_be_owed
from remuda_scheduler.engine.saga import S, Saga, Step
from remuda_scheduler.engine.services import Services
from remuda_scheduler.events import append_event

_log = structlog.get_logger(__name__)

_AGENT_SLACK_SECONDS = 10.0
"""The agent gives up before the engine does, so that the engine hears why."""


class Interrupted(Exception):
    """What is in memory may not be what is in etcd: load the operation again and go on from there."""


def packed(message: Message) -> any_pb2.Any:
    found = any_pb2.Any()
    found.Pack(message, deterministic=True)
    return found


class Run(Generic[S]):
    """`state` is the saga's memory: change it freely, the next journal write stores it."""

    def __init__(
        self,
        saga: Saga[S],
        services: Services,
        record: OperationRecord,
        journal: KeyValue | None,
        cancelled: asyncio.Event,
    ) -> None:
        self.saga = saga
        self.services = services
        self.record = record
        self.cancelled = cancelled
        """Set once somebody asked to cancel."""
        self.journal = Journal() if journal is None else Journal.FromString(journal.value)
        self.journal_revision = 0 if journal is None else journal.mod_revision
        self.resumed = journal is not None
        self.state: S = saga.state()
        if journal is not None:
            self.journal.state.Unpack(self.state)
        self.step: Step[S] | None = None
        """The step that is being done or undone."""
        self.asked: HostId | None = None
        """Host that was sent an order last in this step."""
        self.last_order: tuple[HostId, RunStepRequest] | None = None
        """The last order of this step that may be owed: becomes the debt when it cannot be done."""
        self.settled: set[HostId] = set()
        """Hosts that owe nothing for this instance, besides what this operation left there."""
        self.silent: set[HostId] = set()
        """Hosts that used up the engine's patience: they are asked once more per step, not waited for."""
        self._pending: dict[bytes, ops.Op] = {}
        self.started = time.monotonic()
        self.log = _log.bind(operation=record.id, action=record.action, instance=record.instance_id)

    @property
    def operation_id(self) -> OperationId:
        return OperationId(self.record.id)

    @property
    def instance_id(self) -> InstanceId:
        return InstanceId(self.record.instance_id)

    @property
    def project(self) -> ProjectId:
        return ProjectId(self.record.project)

    @property
    def metadata(self) -> OperationMetadata:
        return self.record.metadata

    # --- etcd ---

    @property
    def pending(self) -> list[ops.Op]:
        """What the next journal write, or the last txn of the operation, takes with it."""
        return list(self._pending.values())

    def with_next_write(self, op: ops.Op) -> None:
        """A later op on the same key takes the place of an earlier one: etcd refuses both in one txn."""
        key = op.request_put.key or op.request_delete_range.key
        self._pending[key] = op

    async def read(self, *keys: str) -> list[KeyValue | None]:
        """Several keys at one revision."""
        result = await self.services.etcd.txn(success=[ops.get(key) for key in keys])
        return [response.kv for response in result.responses]

    async def instance(self) -> tuple[InstanceRecord, InstanceStatus]:
        """Raises RemudaError INSTANCE_NOT_FOUND."""
        keys = self.services.keys
        record, status = await self.read(
            keys.instance(self.project, self.instance_id), keys.instance_status(self.instance_id)
        )
        if record is None or status is None:
            raise RemudaError(Reason.INSTANCE_NOT_FOUND, f"instance {self.instance_id} does not exist")
        return InstanceRecord.FromString(record.value), InstanceStatus.FromString(status.value)

    async def commit(self, *, compare: Sequence[ops.Compare] = (), also: Sequence[ops.Op] = ()) -> bool:
        """Writes journal and operation, `pending` and `also`, in one txn of this term.

        False when one of `compare` does not hold; nothing is written then. Raises Interrupted when the
        journal is not the one that this run wrote last.
        """
        keys, leadership = self.services.keys, self.services.leadership
        journal_key = keys.journal(self.operation_id)
        self.journal.state.CopyFrom(packed(self.state))
        result = await leadership.txn(
            compare=[ops.mod_is(journal_key, self.journal_revision), *compare],
            success=[
                ops.put(journal_key, self.journal.SerializeToString(deterministic=True)),
                ops.put(keys.operation(self.operation_id), self.record.SerializeToString(deterministic=True)),
                *self.pending,
                *also,
            ],
            failure=[ops.get(journal_key)],
            witness=journal_key,
        )
        if not result.succeeded:
            self.check_journal(result.responses[0].kv)
            return False
        self._pending.clear()
        self.journal_revision = result.revision
        self.services.newest_journal = max(self.services.newest_journal, result.revision)
        return True

    def check_journal(self, seen: KeyValue | None) -> None:
        """Raises Interrupted when it is not as this run left it."""
        if (seen.mod_revision if seen else 0) != self.journal_revision:
            raise Interrupted("the journal was written by somebody else, or an answer of etcd was lost")

    async def change_status(
        self,
        change: Callable[[InstanceStatus], None],
        *,
        events: Sequence[InstanceEvent] = (),
        also: Sequence[ops.Op] = (),
    ) -> InstanceStatus:
        """Changes the instance's status and writes the journal, in one txn.

        Observations are written to the same key by hosts/, hence the loop. Raises INSTANCE_NOT_FOUND.
        """
        keys = self.services.keys
        key = keys.instance_status(self.instance_id)
        while True:
            seen = await self.services.etcd.get(key)
            if seen is None:
                raise RemudaError(Reason.INSTANCE_NOT_FOUND, f"instance {self.instance_id} does not exist")
            status = InstanceStatus.FromString(seen.value)
            change(status)
            written = append_event(keys, self.instance_id, status, *events)
            if await self.commit(compare=[ops.mod_is(key, seen.mod_revision)], also=[*written, *also]):
                self.services.newest_status = max(self.services.newest_status, self.journal_revision)
                return status

    def event(
        self,
        kind: str,
        message: str,
        *,
        host: str = "",
        severity: "InstanceEvent.Severity.ValueType" = InstanceEvent.SEVERITY_INFO,
    ) -> InstanceEvent:
        """An event of this operation; its number comes when it is written."""
        return InstanceEvent(
            type=kind,
            severity=severity,
            message=message,
            operation=f"operations/{self.operation_id}",
            host=f"hosts/{host}" if host else "",
            principal=self.metadata.requester,
            request_id=self.metadata.request_id,
        )

    # --- hosts ---

    def key(self, epoch: Epoch | int, *, undo: bool = False, step: str = "") -> StepKey:
        """Names the step that is being done or undone; `step`: another name, for an order beside it."""
        assert self.step is not None
        begun = position.times_begun(self.journal, self.step.name)
        name = step or self.step.name
        deadline = Duration()
        deadline.FromNanoseconds(int(max(1.0, self.step.deadline_seconds - _AGENT_SLACK_SECONDS) * 1e9))
        return StepKey(
            operation_id=self.operation_id,
            # Another try on another host is another step: its result must not be taken for the first one's.
            step=name if begun <= 1 else f"{name}.{begun}",
            direction=StepKey.DIRECTION_UNDO if undo else StepKey.DIRECTION_DO,
            instance_id=self.instance_id,
            epoch=epoch,
            leader=self.services.leader,
            deadline=deadline,
            request_id=self.metadata.request_id,
        )

    def begin_step(self, step: Step[S]) -> None:
        self.step, self.asked, self.last_order = step, None, None

    async def order(
        self, host: HostId | str, epoch: Epoch | int, *, undo: bool = False, step: str = "", **work: Any
    ) -> StepOutput:
        """RunStep on a host; `work` is the one field of RunStepRequest.work. Raises what Agents raises.

        When the step cannot be done, its last order may become a debt of the host; one that changes the run
        state never does, and does not take the place of the one before it.
        """
        request = RunStepRequest(key=self.key(epoch, undo=undo, step=step), **work)
        self.asked = HostId(host)
        if may_be_owed(request):
            self.last_order = (HostId(host), request)
        return await self.services.agents.run_step(HostId(host), request, on_progress=self.publish)

    def publish(self, progress: Progress) -> None:
        self.services.progress.publish(self.operation_id, progress)

    # --- waiting ---

    async def waiting_for(self, host: str, why: str) -> None:
        """Show that the operation waits for a host, and wait a moment. Raises SUPERSEDED as CANCELLED."""
        if self.superseded():
            raise superseded()
        if self.metadata.state != OperationMetadata.STATE_WAITING_FOR_HOST:
            self.log.warning("waiting for a host", host=host, why=why)
            self.metadata.state = OperationMetadata.STATE_WAITING_FOR_HOST
            await self.commit()
        await asyncio.sleep(self.services.timing.look_again)

    async def going_on(self) -> None:
        if self.metadata.state == OperationMetadata.STATE_WAITING_FOR_HOST:
            self.metadata.state = OperationMetadata.STATE_RUNNING
            await self.commit()

    def superseded(self) -> bool:
        """Whether an operation that supersedes this one is queued."""
        claim = self.services.store.claim(self.instance_id)
        return claim is not None and claim.operation_id == self.operation_id and claim.successor_id != ""


def superseded() -> RemudaError:
    return RemudaError(Reason.CANCELLED, "superseded by a newer operation on the instance")


def cancelled() -> RemudaError:
    return RemudaError(Reason.CANCELLED, "cancelled as asked")

"""Finds open operations and keeps one task on each, for one term of leadership."""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog
from google.protobuf.message import Message
from remuda.store.v1.operation_pb2 import OperationRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd.errors import EtcdError, InvalidRequest, NotLeader, TooLarge
from remuda_core.ids import HostId, InstanceId, OperationId

from remuda_scheduler.engine.collector import DebtCollector
from remuda_scheduler.engine.run import Interrupted, Run
from remuda_scheduler.engine.runner import execute
from remuda_scheduler.engine.saga import Ending, Saga
from remuda_scheduler.engine.services import Services

_log = structlog.get_logger(__name__)


class Engine:
    """`run` until the term is over. Cancelling it drops everything at once: the journal has it."""

    def __init__(self, services: Services, sagas: Mapping[str, Saga[Any]]) -> None:
        """`sagas` by action."""
        self._services = services
        self._sagas = sagas
        self._debts = DebtCollector(services)
        self._tasks: dict[OperationId, asyncio.Task[None]] = {}
        self._cancels: dict[OperationId, asyncio.Event] = {}

    async def run(self) -> None:
        """Returns when the leadership is lost. Raises what made a cache fail."""
        watchers = [
            asyncio.create_task(self._follow_operations(), name="operations"),
            asyncio.create_task(self._follow_claims(), name="claims"),
            asyncio.create_task(self._follow_cancels(), name="cancels"),
            asyncio.create_task(self._debts.run(), name="debts"),
            asyncio.create_task(self._services.leadership.lost.wait(), name="leadership"),
        ]
        try:
            done, _ = await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not self._services.leadership.lost.is_set():
                    task.result()
        finally:
            for task in [*watchers, *self._tasks.values()]:
                task.cancel()
            await asyncio.gather(*watchers, *self._tasks.values(), return_exceptions=True)

    async def pay_debts(self, host: HostId) -> int:
        """For whoever sees a host attach. Returns how many were paid. Raises EtcdErrors."""
        return await self._debts.pay_debts(host)

    async def _follow_operations(self) -> None:
        async with self._services.store.operations.subscribe(initial=True) as changes:
            async for change in changes:
                if change.new is not None:
                    self._consider(change.new.value)

    async def _follow_claims(self) -> None:
        """A queued operation begins when the claim has passed to it."""
        async with self._services.store.claims.subscribe(initial=True) as changes:
            async for change in changes:
                if change.new is None:
                    continue
                key = self._services.keys.operation(OperationId(change.new.value.operation_id))
                entry = self._services.store.operations.get(key)
                if entry is not None:
                    self._consider(entry.value)

    async def _follow_cancels(self) -> None:
        prefix = self._services.keys.cancels
        async with self._services.store.cancels.subscribe(initial=True) as changes:
            async for change in changes:
                if change.new is not None:
                    self._cancel_flag(OperationId(change.key.removeprefix(prefix))).set()

    def _cancel_flag(self, operation: OperationId) -> asyncio.Event:
        return self._cancels.setdefault(operation, asyncio.Event())

    def _consider(self, record: OperationRecord) -> None:
        """Start the operation's task if it is its turn."""
        operation = OperationId(record.id)
        if record.done:
            self._cancels.pop(operation, None)
            return
        if operation in self._tasks:
            return
        claim = self._services.store.claim(InstanceId(record.instance_id))
        if record.instance_id and (claim is None or claim.operation_id != operation):
            return
        task = asyncio.create_task(self._keep_on(operation), name=f"operation {operation}")
        self._tasks[operation] = task
        task.add_done_callback(lambda _: self._ended(operation))
        self._services.metrics.operations_running(len(self._tasks))

    def _ended(self, operation: OperationId) -> None:
        self._tasks.pop(operation, None)
        self._cancels.pop(operation, None)
        self._services.metrics.operations_running(len(self._tasks))

    async def _keep_on(self, operation: OperationId) -> None:
        """Loads and executes, again and again until it is done or the term is over."""
        pause = self._services.timing.first_pause
        fault: RemudaError | None = None
        while not self._services.leadership.lost.is_set():
            try:
                run = await self._load(operation)
                if run is not None:
                    await execute(run, fault)
                return
            except NotLeader:
                return
            except (InvalidRequest, TooLarge) as refusal:
                # Repeating it does not mend it: from what the journal has, the operation is ended.
                _log.error("etcd refuses a write", operation=operation, error=str(refusal))
                fault = _fault(refusal)
            except (Interrupted, EtcdError) as error:
                _log.info("operation is loaded again", operation=operation, error=str(error))
            except Exception:
                # A bug in a saga or here. The operation stays open and visible; it must not stop the others.
                _log.exception("operation broke", operation=operation)
            await asyncio.sleep(pause)
            pause = min(pause * 2, self._services.timing.longest_pause)

    async def _load(self, operation: OperationId) -> Run[Any] | None:
        """From etcd, at one revision. None: it is over."""
        keys = self._services.keys
        found = await self._services.etcd.range_key(keys.operation(operation))
        if not found.kvs:
            return None
        record = OperationRecord.FromString(found.kvs[0].value)
        if record.done:
            return None
        # The leader is the only writer of journals, and this task the only one for this operation.
        journal = await self._services.etcd.get(keys.journal(operation))
        saga = self._sagas.get(record.action) or _unknown(record.action)
        return Run(saga, self._services, record, journal, self._cancel_flag(operation))


def _fault(refusal: InvalidRequest | TooLarge) -> RemudaError:
    if isinstance(refusal, TooLarge):
        return RemudaError(
            Reason.REQUEST_TOO_LARGE, f"what the operation has to store is too large for etcd: {refusal}"
        )
    return RemudaError(Reason.INTERNAL, "etcd refuses what the operation has to store; the logs have it")


def _unknown(action: str) -> Saga[Message]:
    """For an action that this version does not have: fails at once, and releases the claim."""

    async def refuse(_run: Run[Message]) -> None:
        raise RemudaError(Reason.UNIMPLEMENTED, f"this version does not know the action {action}")

    async def ending(_run: Run[Message], _error: RemudaError | None = None) -> Ending:
        return Ending()

    return Saga(action=action, state=OperationRecord, steps=(), begin=refuse, succeed=ending, fail=ending)

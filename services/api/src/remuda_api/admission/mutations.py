"""How every mutation is committed: look, decide, one transaction; look again when it lost a race."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from google.longrunning import operations_pb2
from google.protobuf.message import Message
from remuda.store.v1 import operation_pb2 as records
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import LeaseNotFound
from remuda_core.etcd.keys import Keys
from remuda_core.etcd.model import KeyValue
from remuda_core.ids import OperationId

from remuda_api.admission.requests import Call, Earlier, RequestLog
from remuda_api.store.operations import operation_message

R = TypeVar("R", bound=Message)

_TRIES = 12
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Generic[R]):
    """What one attempt found out: what must still be so, what to write, what to answer."""

    response: R
    """Without etag: the revision is not known yet."""
    compare: Sequence[ops.Compare] = ()
    success: Sequence[ops.Op] = ()
    """Empty: everything is already as wanted."""
    witness: str | None = None
    """A key that the transaction pins and puts: it makes a lost answer harmless (see Etcd.txn)."""
    operation_id: str = ""
    """For answers that are operations: a repeated request is answered with what it has become."""
    secret_free: R | None = None
    """What may be stored for a repeated request, when that is not the response itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[R]):
    response: R
    revision: int
    """At which it can be read; 0 when nothing was written."""
    replayed: bool = field(default=False)
    """An earlier call with this request id did it."""


class Mutations:
    def __init__(self, etcd: Etcd, keys: Keys) -> None:
        self.etcd = etcd
        self.keys = keys
        self._requests = RequestLog(etcd, keys)

    async def run(self, call: Call, attempt: Callable[[], Awaitable[Plan[R]]], kind: type[R]) -> Answer[R]:
        """`attempt` reads etcd afresh each time and raises RemudaError where the call is refused."""
        for turn in range(_TRIES):
            if turn:
                # All images of a project change one sum: those that lost against each other spread out.
                await asyncio.sleep(random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**turn)))
            if (earlier := await self._requests.earlier(call)) is not None:
                return await self._replay(earlier, kind)
            try:
                plan = await attempt()
            except RemudaError:
                # It may have seen what a twin of this very call has just done.
                if (earlier := await self._requests.earlier(call)) is not None:
                    return await self._replay(earlier, kind)
                raise
            if call.validate_only:
                return Answer(response=plan.response, revision=0)
            answer = await self._commit(call, plan)
            if answer is not None:
                return answer
        raise RemudaError(
            Reason.STORE_UNAVAILABLE,
            f"{call.rpc}: what it depends on changed {_TRIES} times while it was decided",
            retry_after_seconds=1.0,
        )

    async def _commit(self, call: Call, plan: Plan[R]) -> Answer[R] | None:
        stored = None if plan.operation_id else (plan.secret_free or plan.response)
        compare, success = await self._requests.writes(call, operation_id=plan.operation_id, response=stored)
        compare, success = [*plan.compare, *compare], [*plan.success, *success]
        if not success:
            return Answer(response=plan.response, revision=0)
        try:
            result = await self.etcd.txn(compare=compare, success=success, witness=plan.witness)
        except LeaseNotFound:
            self._requests.forget_lease()
            return None
        if not result.succeeded:
            return None
        stamp(plan.response, result.revision)
        return Answer(response=plan.response, revision=result.revision)

    async def _replay(self, earlier: Earlier, kind: type[R]) -> Answer[R]:
        response = kind()
        if earlier.record.operation_id:
            operation: Message = await self._operation(OperationId(earlier.record.operation_id))
            assert isinstance(operation, kind)
            response = operation
        else:
            earlier.record.response.Unpack(response)
            # One transaction wrote both, so its revision is the etag that the first answer carried.
            stamp(response, earlier.revision)
        return Answer(response=response, revision=earlier.revision, replayed=True)

    async def _operation(self, operation: OperationId) -> operations_pb2.Operation:
        kv = await self.etcd.get(self.keys.operation(operation))
        if kv is None:
            raise RemudaError(
                Reason.OPERATION_NOT_FOUND,
                "the operation of this request_id has been deleted",
                resource=f"operations/{operation}",
            )
        cancel = await self.etcd.get(self.keys.cancel(operation))
        record = records.OperationRecord.FromString(kv.value)
        return operation_message(record, cancel_requested=cancel is not None)

    async def read(self, *keys: str) -> list[KeyValue | None]:
        """Several keys at one revision."""
        result = await self.etcd.txn(success=[ops.get(key) for key in keys])
        return [response.kv for response in result.responses]


def stamp(message: Message, revision: int) -> None:
    """Set the etag of a resource, or of the one resource that a response carries; one that is set stays."""
    for name in ("host", ""):
        target = getattr(message, name, None) if name else message
        if isinstance(target, Message) and "etag" in target.DESCRIPTOR.fields_by_name:
            target.etag = target.etag or str(revision)  # type: ignore[attr-defined]
            return

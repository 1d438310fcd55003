"""Operations as admission makes them, and the requests to cancel or forget one."""

import time

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from remuda.compute.v1 import operation_pb2 as public
from remuda.store.v1 import instance_pb2, operation_pb2
from remuda_core.errors import Reason, RemudaError, Violation, not_found
from remuda_core.etcd import ops
from remuda_core.etcd.keys import Keys
from remuda_core.ids import OperationId
from remuda_core.lifecycle import Action
from remuda_core.names import InstanceName, operation_name

from remuda_api.admission.mutations import Mutations
from remuda_api.admission.requests import Call
from remuda_api.store.operations import packed

_TRIES = 10


def now() -> Timestamp:
    found = Timestamp()
    found.FromNanoseconds(time.time_ns())
    return found


def pending_operation(
    call: Call,
    *,
    operation: OperationId,
    action: Action,
    instance: InstanceName,
    request: Message,
    supersedes: str = "",
) -> operation_pb2.OperationRecord:
    """`request` as admitted: its names carry UUIDs."""
    return operation_pb2.OperationRecord(
        id=operation,
        action=action.rpc,
        instance_id=instance.instance,
        project=instance.project,
        request=packed(request),
        metadata=public.OperationMetadata(
            action=action.rpc,
            target=str(instance),
            state=public.OperationMetadata.STATE_PENDING,
            requester=call.principal,
            request_id=call.request_id,
            create_time=now(),
        ),
        supersedes=supersedes,
    )


def ended(record: operation_pb2.OperationRecord, response: Message) -> operation_pb2.OperationRecord:
    """The operation of a request that finds everything as wanted, or of one that only validates."""
    done = operation_pb2.OperationRecord()
    done.CopyFrom(record)
    done.done = True
    done.response.CopyFrom(packed(response))
    done.metadata.state = public.OperationMetadata.STATE_DONE
    done.metadata.end_time.CopyFrom(record.metadata.create_time)
    return done


def claim_of(record: operation_pb2.OperationRecord) -> instance_pb2.Claim:
    return instance_pb2.Claim(operation_id=record.id, action=record.action)


def put_operation(keys: Keys, record: operation_pb2.OperationRecord) -> ops.Op:
    key = keys.operation(OperationId(record.id))
    return ops.put(key, record.SerializeToString(deterministic=True))


def cancel_record(principal: str) -> bytes:
    return operation_pb2.CancelRecord(principal=principal, time=now()).SerializeToString(deterministic=True)


class OperationAdmission:
    """Cancel and Delete of google.longrunning.Operations. Neither needs a leader."""

    def __init__(self, mutations: Mutations) -> None:
        self._etcd = mutations.etcd
        self._keys = mutations.keys

    async def cancel(self, operation: OperationId, *, principal: str) -> int:
        """Revision of the request, 0 when there was nothing to ask for: it was over, or asked already."""
        key, cancel = self._keys.operation(operation), self._keys.cancel(operation)
        for _ in range(_TRIES):
            record, revision = await self._record(operation)
            if record.done:
                return 0
            # The leader removes the flag in the transaction that ends the operation: compared, so that no
            # flag is left behind for an operation that has just ended.
            result = await self._etcd.txn(
                compare=[ops.mod_is(key, revision), ops.absent(cancel)],
                success=[ops.put(cancel, cancel_record(principal))],
                failure=[ops.get(cancel)],
                witness=cancel,
            )
            if result.succeeded:
                return result.revision
            if result.responses and result.responses[0].kv is not None:
                return 0
        raise _contended(operation)

    async def delete(self, operation: OperationId) -> Empty:
        """Forgets one that is over. Raises STATE_FORBIDS_ACTION for one that is not."""
        name, key = operation_name(operation), self._keys.operation(operation)
        for _ in range(_TRIES):
            record, revision = await self._record(operation)
            if not record.done:
                raise RemudaError(
                    Reason.STATE_FORBIDS_ACTION,
                    f"{name} is not over: cancel it, or wait for its end",
                    violations=[Violation(name, "is not over")],
                )
            result = await self._etcd.txn(
                compare=[ops.mod_is(key, revision)],
                success=[ops.delete(key), ops.delete(self._keys.cancel(operation))],
            )
            if result.succeeded:
                return Empty()
        raise _contended(operation)

    async def _record(self, operation: OperationId) -> tuple[operation_pb2.OperationRecord, int]:
        kv = await self._etcd.get(self._keys.operation(operation))
        if kv is None:
            raise not_found(operation_name(operation))
        return operation_pb2.OperationRecord.FromString(kv.value), kv.mod_revision


def _contended(operation: OperationId) -> RemudaError:
    return RemudaError(
        Reason.STORE_UNAVAILABLE,
        f"{operation_name(operation)} changed {_TRIES} times meanwhile",
        retry_after_seconds=1.0,
    )

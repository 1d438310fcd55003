"""The last txn of an operation: result, status, events, and the claim handed on or released."""

import time
from collections.abc import Sequence
from typing import Any

from google.rpc.status_pb2 import Status
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.store.v1.instance_pb2 import Claim, InstanceStatus
from remuda.store.v1.operation_pb2 import OperationRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.model import KeyValue
from remuda_core.ids import OperationId
from remuda_core.rpc.status import from_status, to_status

from remuda_scheduler.engine.clock import now
from remuda_scheduler.engine.run import Interrupted, Run, packed
from remuda_scheduler.engine.saga import Ending
from remuda_scheduler.events import append_event


async def finish(run: Run[Any], ending: Ending, error: RemudaError | None) -> bool:
    """False: a cancel came before the point of no return, which for most sagas is this very txn; nothing
    was written.
    """
    keys = run.services.keys
    journal, claim = keys.journal(run.operation_id), keys.claim(run.instance_id)
    cancel, status = keys.cancel(run.operation_id), keys.instance_status(run.instance_id)
    operation = keys.operation(run.operation_id)
    while True:
        seen = dict(
            zip(
                (journal, claim, cancel, status, operation),
                await run.read(journal, claim, cancel, status, operation),
                strict=True,
            )
        )
        run.check_journal(seen[journal])
        undecided = error is None and not run.journal.committed
        if undecided and seen[cancel] is not None:
            return False
        record = _closed(run, ending, error, cancel_asked=seen[cancel] is not None)
        writes = [
            ops.put(operation, record.SerializeToString(deterministic=True)),
            ops.delete(journal),
            ops.delete(cancel),
            *await _hand_on_claim(run, claim, seen[claim]),
            *_status_writes(run, ending, record, seen[status]),
            *run.pending,
            *ending.also,
        ]
        pins = [ops.mod_is(key, kv.mod_revision if kv else 0) for key, kv in seen.items() if key != cancel]
        pins += ending.compare
        if undecided:
            pins.append(ops.absent(cancel))
        result = await run.services.leadership.txn(compare=pins, success=writes, witness=operation)
        if result.succeeded:
            run.record = record
            run.services.newest_status = max(run.services.newest_status, result.revision)
            run.services.newest_journal = max(run.services.newest_journal, result.revision)
            _tell(run, record)
            return True
        if ending.compare:
            raise Interrupted("what the ending rests on may have changed")


def _closed(
    run: Run[Any], ending: Ending, error: RemudaError | None, *, cancel_asked: bool
) -> OperationRecord:
    record = OperationRecord()
    record.CopyFrom(run.record)
    record.done = True
    metadata = record.metadata
    metadata.phase = ""
    metadata.end_time.CopyFrom(now())
    metadata.cancel_requested = cancel_asked
    if cancel_asked:
        metadata.cancel_outcome = OperationMetadata.CANCEL_OUTCOME_TOO_LATE
    if error is None:
        metadata.state = OperationMetadata.STATE_DONE
        if ending.response is not None:
            record.response.CopyFrom(packed(ending.response))
        return record
    record.error.CopyFrom(to_status(error, request_id=metadata.request_id))
    if error.reason is Reason.CANCELLED:
        metadata.state = OperationMetadata.STATE_CANCELLED
        metadata.cancel_outcome = OperationMetadata.CANCEL_OUTCOME_CANCELLED
    else:
        metadata.state = OperationMetadata.STATE_FAILED
    return record


async def _hand_on_claim(run: Run[Any], key: str, seen: KeyValue | None) -> Sequence[ops.Op]:
    if seen is None:
        return ()
    claim = Claim.FromString(seen.value)
    if claim.operation_id != run.operation_id:
        raise Interrupted(f"the claim is held by {claim.operation_id}")
    if not claim.successor_id:
        return (ops.delete(key),)
    successor = await run.services.etcd.get(run.services.keys.operation(OperationId(claim.successor_id)))
    if successor is None:
        return (ops.delete(key),)
    action = OperationRecord.FromString(successor.value).action
    held = Claim(operation_id=claim.successor_id, action=action)
    return (ops.put(key, held.SerializeToString(deterministic=True)),)


def _status_writes(
    run: Run[Any], ending: Ending, record: OperationRecord, seen: KeyValue | None
) -> Sequence[ops.Op]:
    if seen is None or ending.instance_removed:
        return ()
    status = InstanceStatus.FromString(seen.value)
    if ending.change is not None:
        ending.change(status)
    last = _last_event(run, record, status.host_id)
    return append_event(run.services.keys, run.instance_id, status, *ending.events, last)


def _last_event(run: Run[Any], record: OperationRecord, host: str) -> InstanceEvent:
    action = record.action
    match record.metadata.state:
        case OperationMetadata.STATE_DONE:
            return run.event("OPERATION_DONE", f"{action} is done.", host=host)
        case OperationMetadata.STATE_CANCELLED:
            return run.event("OPERATION_CANCELLED", f"{action}: {_words(record.error)}.", host=host)
        case _:
            return run.event(
                "OPERATION_FAILED",
                f"{action} failed: {_words(record.error)}",
                host=host,
                severity=InstanceEvent.SEVERITY_ERROR,
            )


def _words(error: Status) -> str:
    return error.message


def _tell(run: Run[Any], record: OperationRecord) -> None:
    outcome = OperationMetadata.State.Name(record.metadata.state).removeprefix("STATE_").lower()
    seconds = time.monotonic() - run.started
    if record.metadata.HasField("create_time"):
        seconds = (
            record.metadata.end_time.ToDatetime() - record.metadata.create_time.ToDatetime()
        ).total_seconds()
    reason = from_status(record.error).reason.value if record.HasField("error") else ""
    run.services.metrics.operation_ended(record.action, outcome, max(0.0, seconds), reason=reason)
    # In this order: who is told of the end looks for the answers to its commands.
    run.services.controls.finish(run.operation_id)
    run.services.progress.finish(run.operation_id)
    run.log.info("operation ended", outcome=outcome, error=record.error.message or None)

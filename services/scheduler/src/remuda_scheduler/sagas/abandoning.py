"""Giving a move up for the DeleteInstance that waits behind it, although nobody knows where the guest is.

From then on copies are destroyed that may be the living one. So it is decided in one txn, together with the
Delete's own point of no return: the instance becomes DELETING, provided that nobody has cancelled the Delete.
Whichever of the two comes first wins, and both see it: the Delete that begins with an instance in DELETING is
past its cancel (delete_instance.begin), and a Delete that was cancelled leaves the move waiting as before.
"""

from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.instance_pb2 import Instance
from remuda.store.v1.instance_pb2 import Claim, InstanceStatus
from remuda.store.v1.operation_pb2 import OperationRecord
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.etcd import ops
from remuda_core.ids import OperationId

from remuda_scheduler.engine.run import Run
from remuda_scheduler.events import append_event

_Run = Run[LiveMigrateState]

_DELETE = "DeleteInstance"


async def abandoned(run: _Run) -> bool:
    """While a move holds the instance, nothing but `abandon` makes it DELETING."""
    _, status = await run.instance()
    return status.state == Instance.STATE_DELETING


async def abandon(run: _Run) -> bool:
    """Whether the move is given up: now, or by an earlier leader."""
    keys = run.services.keys
    claim_key, status_key = keys.claim(run.instance_id), keys.instance_status(run.instance_id)
    while True:
        claim_kv, status_kv = await run.read(claim_key, status_key)
        if claim_kv is None or status_kv is None:
            return False
        status = InstanceStatus.FromString(status_kv.value)
        if status.state == Instance.STATE_DELETING:
            return True
        claim = Claim.FromString(claim_kv.value)
        successor = OperationId(claim.successor_id)
        if claim.operation_id != run.operation_id or not await _deletes(run, successor):
            return False
        status.state, status.status_message = Instance.STATE_DELETING, ""
        words = "Its move was given up, wherever the guest is: the instance is to be deleted."
        event = run.event("MIGRATION_ABANDONED", words, severity=InstanceEvent.SEVERITY_WARNING)
        if await run.commit(
            compare=[
                ops.absent(keys.cancel(successor)),
                ops.mod_is(claim_key, claim_kv.mod_revision),
                ops.mod_is(status_key, status_kv.mod_revision),
            ],
            also=append_event(keys, run.instance_id, status, event),
        ):
            run.services.newest_status = max(run.services.newest_status, run.journal_revision)
            run.log.warning("move abandoned", successor=successor)
            return True


async def _deletes(run: _Run, successor: OperationId) -> bool:
    """Whether it is a Delete that nobody has cancelled."""
    if not successor:
        return False
    operation, cancel = await run.read(
        run.services.keys.operation(successor), run.services.keys.cancel(successor)
    )
    if operation is None or cancel is not None:
        return False
    return OperationRecord.FromString(operation.value).action == _DELETE

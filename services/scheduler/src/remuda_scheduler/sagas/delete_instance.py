"""DeleteInstance: nothing of the instance is left.

Parameters: the instance. It may be in any state, with or without a host; the record may even be gone.

When another operation held the instance it was cancelled in admission, and this one begins when the claim has
passed to it: so whatever that one half-made is undone, moved or owed before anything is removed here.

Point of no return: the txn that marks the instance DELETING. After it the owner has been told that it goes,
and files may be gone at any moment. A move that made way for this one, while nobody could know which copy
lived, has removed one of them and marked the instance itself: then this begins past that point.

A host that cannot be reached does not stop it: the removal becomes a debt of that host. What hosts owe
already for other copies becomes removals too. The addresses stay taken until the last of these debts is paid,
because guests may still be using them.
"""

from google.protobuf.empty_pb2 import Empty
from remuda.agent.v1.agent_pb2 import RemoveInstance
from remuda.compute.v1.instance_pb2 import Instance
from remuda.store.v1.instance_pb2 import InstanceRecord, InstanceStatus
from remuda.store.v1.saga_pb2 import PowerState
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.ids import ImageId

from remuda_scheduler.engine.run import Run
from remuda_scheduler.engine.saga import Commit, Ending, Saga, Step, Unreachable
from remuda_scheduler.sagas.addressing import given_back
from remuda_scheduler.sagas.inheriting import inherit_debts

_Run = Run[PowerState]


async def begin(run: _Run) -> None:
    try:
        _, status = await run.instance()
    except RemudaError as error:
        if error.reason is not Reason.INSTANCE_NOT_FOUND:
            raise
        return
    run.state.host_id, run.state.pool, run.state.epoch = status.host_id, status.pool, status.epoch
    # By evidence: a copy is gone, and a cancel comes too late.
    run.journal.committed = status.state == Instance.STATE_DELETING


def _host(run: _Run) -> str:
    return run.state.host_id


async def mark_deleting(run: _Run) -> None:
    def change(status: InstanceStatus) -> None:
        status.state = Instance.STATE_DELETING
        status.status_message = ""

    try:
        await run.change_status(change)
    except RemudaError as error:
        if error.reason is not Reason.INSTANCE_NOT_FOUND:
            raise


async def remove_instance(run: _Run) -> None:
    if run.state.host_id:
        await run.order(
            run.state.host_id, run.state.epoch, remove_instance=RemoveInstance(pool=run.state.pool)
        )


async def succeed(run: _Run) -> Ending:
    # A debt that was left a moment ago has to be there before addresses can hang on it.
    await run.commit()
    keys = run.services.keys
    record_key = keys.instance(run.project, run.instance_id)
    status_key = keys.instance_status(run.instance_id)
    record_kv, status_kv = await run.read(record_key, status_key)
    also = [
        ops.delete(record_key),
        ops.delete(status_key),
        ops.delete_prefix(keys.events(run.instance_id)),
        ops.delete_prefix(f"{keys.migrations}{run.instance_id}/"),
    ]
    if record_kv is not None:
        record = InstanceRecord.FromString(record_kv.value)
        also.append(ops.delete(keys.image_ref(ImageId(record.image_id), run.instance_id)))
        name = keys.instance_name(run.project, record.display_name)
        holder = await run.services.etcd.get(name)
        # The name may have been given to another instance by an update.
        if holder is not None and holder.value == run.instance_id.encode():
            also.append(ops.delete(name))
    ports = InstanceStatus.FromString(status_kv.value).ports if status_kv is not None else ()
    compare, freed = await given_back(run.services, run.instance_id, ports)
    return Ending(instance_removed=True, compare=tuple(compare), also=(*also, *freed), response=Empty())


async def fail(_run: _Run, error: RemudaError) -> Ending:
    """Cancelled before it began, or its host refuses to remove it."""

    def change(status: InstanceStatus) -> None:
        if status.state == Instance.STATE_DELETING:
            status.state = Instance.STATE_FAILED
            status.status_message = f"not deleted: {error.message}"

    return Ending(change=change)


SAGA = Saga(
    action="DeleteInstance",
    state=PowerState,
    begin=begin,
    steps=(
        Step(name="marked_deleting", do=mark_deleting, commits=Commit.IF_NOT_CANCELLED),
        Step(name="debts_inherited", do=inherit_debts),
        Step(
            name="instance_removed",
            do=remove_instance,
            host=_host,
            attempts=5,
            unreachable=Unreachable.OWE,
        ),
    ),
    succeed=succeed,
    fail=fail,
    takes_over_debts=True,
)

"""Where a saga stands: reading and changing its journal and the steps in its metadata. Pure.

Journal.entries and OperationMetadata.steps run in parallel, one pair for every time that a step was begun.
"""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status
from remuda.compute.v1.operation_pb2 import OperationMetadata, OperationStep
from remuda.store.v1.operation_pb2 import Journal
from remuda_core.ids import HostId
from remuda_core.names import host_name

from remuda_scheduler.engine.saga import Saga, Step, Unreachable

_TO_UNDO = frozenset(
    {
        OperationStep.STATE_RUNNING,
        OperationStep.STATE_DONE,
        OperationStep.STATE_FAILED,
        OperationStep.STATE_UNDOING,
    }
)
_OVER = frozenset(
    {
        OperationStep.STATE_DONE,
        OperationStep.STATE_FAILED,
        OperationStep.STATE_UNDONE,
        OperationStep.STATE_OWED,
    }
)


def last_entry(journal: Journal, step: str) -> int:
    """Index of the newest entry of a step, -1 when it was never begun."""
    return max((index for index, entry in enumerate(journal.entries) if entry.step == step), default=-1)


def times_begun(journal: Journal, step: str) -> int:
    return sum(entry.step == step for entry in journal.entries)


def next_step(saga: Saga[Any], journal: Journal) -> Step[Any] | None:
    """The first step that is not complete; None when all are."""
    return next((step for step in saga.steps if not _complete(step, journal)), None)


def _complete(step: Step[Any], journal: Journal) -> bool:
    index = last_entry(journal, step.name)
    if index < 0:
        return False
    state = journal.entries[index].state
    # Elsewhere OWED is an undo that could not be done: that step may well be begun again on another host.
    owed = state == OperationStep.STATE_OWED and step.unreachable is Unreachable.OWE
    return state == OperationStep.STATE_DONE or owed


def next_undo(journal: Journal) -> int:
    """Index of the newest entry that is still to be undone, -1 when there is none.

    With `retry_from`, what was done before that step stays.
    """
    first = last_entry(journal, journal.retry_from) if journal.retry_from else 0
    return max(
        (index for index, entry in enumerate(journal.entries) if index >= first and entry.state in _TO_UNDO),
        default=-1,
    )


def open_step(
    journal: Journal, metadata: OperationMetadata, name: str, host: HostId, time: Timestamp
) -> None:
    journal.entries.add(step=name, state=OperationStep.STATE_RUNNING, host_id=host, attempts=1)
    step = metadata.steps.add(name=name, state=OperationStep.STATE_RUNNING, start_time=time)
    if host:
        step.host = host_name(host)
    metadata.phase = name
    metadata.state = OperationMetadata.STATE_RUNNING


def take_back_open(journal: Journal, metadata: OperationMetadata) -> None:
    """The last `open_step` was refused by etcd."""
    del journal.entries[-1]
    del metadata.steps[-1]


def mark(
    journal: Journal,
    metadata: OperationMetadata,
    index: int,
    state: OperationStep.State.ValueType,
    time: Timestamp,
    error: Status | None = None,
) -> None:
    journal.entries[index].state = state
    step = metadata.steps[index]
    step.state = state
    if state in _OVER:
        step.end_time.CopyFrom(time)
    if error is not None:
        step.error.CopyFrom(error)
    metadata.phase = step.name
    if state in (OperationStep.STATE_UNDOING, OperationStep.STATE_UNDONE):
        metadata.state = OperationMetadata.STATE_UNDOING


def hosts_named(journal: Journal) -> set[HostId]:
    """Hosts where steps acted or act."""
    return {HostId(entry.host_id) for entry in journal.entries if entry.host_id}

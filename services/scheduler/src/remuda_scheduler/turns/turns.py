"""The queue as the journals have it: there is no second book that could say otherwise.

A move runs from its reservation, made in the transaction that ends its wait, to the transaction that gives
the reservation up: when the guest has moved, or when everything is undone.
"""

from collections import Counter
from collections.abc import Mapping

from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationStep
from remuda.store.v1.operation_pb2 import Journal
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.etcd.cache import Entry
from remuda_core.ids import HostId, OperationId

from remuda_scheduler.store import StoreView
from remuda_scheduler.turns.queue import Limits, Move, Place, places

WAITING_STEP = "capacity_reserved"
"""Of sagas/live_migrate.py: its first part is to wait."""


class Turns:
    """Over the caches as they are; the caller waits until they show what must not be missed."""

    def __init__(self, store: StoreView, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._revision = -1
        self._places: Mapping[OperationId, Place | None] = {}

    def place(self, operation: OperationId) -> Place | None:
        """None: it may start. Also for one that the caches do not show waiting (yet)."""
        return self._newest().get(operation)

    def waiting(self) -> Mapping[str, int]:
        """How many wait, by limit. One that waits for several is counted for that in which it is last."""
        return Counter(place.limit for place in self._newest().values() if place is not None)

    def _newest(self) -> Mapping[OperationId, Place | None]:
        revision = self._store.journals.revision
        # All that wait look again and again: the queue is counted once for all of them.
        if revision != self._revision:
            self._places = self._counted()
            self._revision = revision
        return self._places

    def _counted(self) -> Mapping[OperationId, Place | None]:
        running: list[Move] = []
        waiting: list[Move] = []
        for entry in self._store.journals.items():
            journal = entry.value
            if not journal.state.Is(LiveMigrateState.DESCRIPTOR):
                continue
            if journal.reservations:
                running.append(self._move(entry))
            elif _waits(journal):
                waiting.append(self._move(entry))
        return places(self._limits, running, waiting)

    def _move(self, entry: Entry[Journal]) -> Move:
        operation = OperationId(entry.key.rpartition("/")[2])
        state = LiveMigrateState()
        entry.value.state.Unpack(state)
        record = self._store.operations.get(self._store.keys.operation(operation))
        request = LiveMigrateInstanceRequest()
        if record is not None:
            record.value.request.Unpack(request)
        return Move(
            operation=operation,
            source=HostId(state.source_host_id),
            target=HostId(state.target_host_id),
            maintenance=request.priority == LiveMigrateInstanceRequest.PRIORITY_MAINTENANCE,
            admitted=record.create_revision if record is not None else entry.create_revision,
        )


def _waits(journal: Journal) -> bool:
    """Not those that are still being checked: who is not ready holds nobody up."""
    if journal.undoing or not journal.entries:
        return False
    last = journal.entries[-1]
    return last.step == WAITING_STEP and last.state == OperationStep.STATE_RUNNING

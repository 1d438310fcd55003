"""What hosts owe for an instance that is to be deleted: no clean-up of this or that any more, but all of it.

Orders of before spare what lives: a source that runs is not released, a guest that has arrived is not
undone. They would be refused for ever now that nothing of the instance is to be left.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from remuda.agent.v1.agent_pb2 import RemoveInstance, RunStepRequest
from remuda.store.v1.host_pb2 import Debt
from remuda.store.v1.saga_pb2 import PowerState
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.ids import HostId

from remuda_scheduler.engine.debts import debt_of, debts_of, order_of, with_ports
from remuda_scheduler.engine.run import Run

_Run = Run[PowerState]


class _Copy(NamedTuple):
    """One that a host may still have."""

    host: str
    epoch: int
    pool: str


async def inherit_debts(run: _Run) -> None:
    """One removal for each copy takes the place of all that is owed for it."""
    while True:
        owed = await debts_of(run.services, instance=run.instance_id)
        # By key: a repeated step finds removals that it has written itself, and etcd takes one op for a key.
        written: dict[str, ops.Op] = {}
        for copy, entries in _by_copy(owed):
            written.update((entry.key, ops.delete(entry.key)) for entry in entries)
            ports = [port for entry in entries for port in entry.value.ports]
            # The order that this operation gives next removes the same; unless they keep addresses.
            if ports or not _removed_next(run, copy):
                debt = debt_of(HostId(copy.host), _removal(run, copy, entries))
                key = run.services.keys.debt(HostId(copy.host), run.operation_id, debt.step)
                written[key] = ops.put(key, with_ports(debt, ports).SerializeToString(deterministic=True))
        # A payment that came between has changed one: look again.
        compare = [ops.mod_is(one.key, one.mod_revision) for one in owed]
        if await run.commit(compare=compare, also=list(written.values())):
            return


def _by_copy(owed: Sequence[Entry[Debt]]) -> list[tuple[_Copy, list[Entry[Debt]]]]:
    """Without those about no files of the instance: a fetch of a base image that is to stop, say."""

    def copy(entry: Entry[Debt]) -> _Copy:
        removal = removal_in(order_of(entry.value))
        return _Copy(entry.value.host_id, entry.value.epoch, removal.pool if removal else "")

    grouped = groupby(sorted(owed, key=copy), copy)
    return [(key, list(entries)) for key, entries in grouped if key.pool]


def _removed_next(run: _Run, copy: _Copy) -> bool:
    return (copy.host, copy.pool) == (run.state.host_id, run.state.pool) and copy.epoch <= run.state.epoch


def _removal(run: _Run, copy: _Copy, entries: Sequence[Entry[Debt]]) -> RunStepRequest:
    found = [removal_in(order_of(entry.value)) for entry in entries]
    keep = any(one is not None and one.keep_shared_files for one in found)
    return RunStepRequest(
        key=run.key(copy.epoch, step=f"copy_removed.{copy.pool}.{copy.epoch}"),
        remove_instance=RemoveInstance(pool=copy.pool, keep_shared_files=keep),
    )


def removal_in(order: RunStepRequest) -> RemoveInstance | None:
    """Of the copy that an order was about. Files on a pool that hosts share stay: whoever owns them by record
    removes them.
    """
    match order.WhichOneof("work"):
        case "prepare_disks":
            return RemoveInstance(pool=order.prepare_disks.spec.pool)
        case "define_domain":
            return RemoveInstance(pool=order.define_domain.spec.pool)
        case "remove_instance":
            return order.remove_instance
        case "prepare_incoming":
            incoming = order.prepare_incoming
            return RemoveInstance(pool=incoming.spec.pool, keep_shared_files=incoming.shared_disks)
        case "finish_incoming":
            return RemoveInstance(pool=order.finish_incoming.pool)
        case "release_source":
            source = order.release_source
            return RemoveInstance(pool=source.pool, keep_shared_files=source.shared_disks)
        case _:
            return None

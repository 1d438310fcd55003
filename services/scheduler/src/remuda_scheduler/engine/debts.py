"""Clean-up that a host owes because it could not be done: what may be owed, and how it is paid.

A debt is the order as it could not be given, to be sent once more in the name of the present leader. The
agent's steps look before they act, so a debt that was paid without our knowing is paid again harmlessly.

A debt may be days old when it is paid. So it must never contradict what was done since:
* what starts, stops or pauses a guest is never owed, and the run state is left as it is found;
* an operation has the debts of (its host, its instance) paid before its first order there (`settle`), and
  while one is paid nobody else orders anything of the two (`Services.turn`).
"""

import asyncio
from collections.abc import Iterable

import structlog
from google.protobuf.any_pb2 import Any
from remuda.agent.v1.agent_pb2 import RunStepRequest
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.instance_pb2 import Instance
from remuda.store.v1.host_pb2 import Debt
from remuda.store.v1.instance_pb2 import Port
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.ids import HostId, InstanceId, OperationId

from remuda_scheduler.addresses import freed_ports
from remuda_scheduler.engine.clock import now
from remuda_scheduler.engine.services import Services
from remuda_scheduler.engine.splits import contain_second_copy

_log = structlog.get_logger(__name__)

_SETTLED = frozenset({Reason.STALE_EPOCH, Reason.GUEST_STOPPED})
"""Refusals that leave nothing to do: the host holds a newer copy of the instance; the guest that was to be
finished has ended since."""

_RUN_STATE = frozenset({"start_domain", "stop_domain", "pause_domain"})


def may_be_owed(request: RunStepRequest) -> bool:
    """Not what changes the run state: paid late, it would start what was stopped since, or the reverse."""
    return request.WhichOneof("work") not in _RUN_STATE


def debt_of(host: HostId, request: RunStepRequest, ports: Iterable[Port] = ()) -> Debt:
    order = RunStepRequest()
    order.CopyFrom(request)
    order.key.ClearField("leader")
    packed = Any()
    packed.Pack(order, deterministic=True)
    return Debt(
        host_id=host,
        operation_id=order.key.operation_id,
        step=order.key.step,
        instance_id=order.key.instance_id,
        epoch=order.key.epoch,
        request=packed,
        create_time=now(),
        ports=ports,
    )


def order_of(debt: Debt) -> RunStepRequest:
    """Without a leader."""
    order = RunStepRequest()
    debt.request.Unpack(order)
    return order


async def debts_of(
    services: Services, *, host: HostId | None = None, instance: InstanceId | None = None
) -> list[Entry[Debt]]:
    """Oldest first. From etcd: the cache may not show yet what an operation left a moment ago."""
    prefix = f"{services.keys.debts}{host}/" if host else services.keys.debts
    found = [
        Entry(
            key=kv.key,
            value=Debt.FromString(kv.value),
            create_revision=kv.create_revision,
            mod_revision=kv.mod_revision,
        )
        async for page in services.etcd.pages(prefix)
        for kv in page.kvs
    ]
    mine = [entry for entry in found if instance is None or entry.value.instance_id == instance]
    return sorted(mine, key=lambda entry: (entry.create_revision, entry.key))


async def settle(services: Services, host: HostId, instance: InstanceId, *, mine: OperationId) -> None:
    """Pays what the host owes for the instance, besides what the operation `mine` has left there itself.

    Raises RemudaError: why the first one could not be paid. Nothing may then be ordered of the host.
    """
    async with services.turn(host, instance):
        for entry in await debts_of(services, host=host, instance=instance):
            if entry.value.operation_id == mine:
                continue
            error = await pay(services, entry)
            if error is not None:
                raise RemudaError(
                    error.reason,
                    f"{entry.value.step} of an earlier operation is still owed there: {error.message}",
                    metadata=error.metadata,
                )


async def pay(services: Services, entry: Entry[Debt]) -> RemudaError | None:
    """None: paid, or void. The caller has the turn of its host and instance. Raises EtcdErrors."""
    debt, order = entry.value, order_of(entry.value)
    log = _log.bind(host=debt.host_id, operation=debt.operation_id, step=debt.step, instance=debt.instance_id)
    if may_be_owed(order):
        error = await _give(services, HostId(debt.host_id), entry, order)
        if error is not None and error.reason not in _SETTLED:
            log.warning("debt not paid", error=str(error))
            return error
    await _strike_off(services, entry)
    log.info("debt paid")
    return None


async def _give(
    services: Services, host: HostId, entry: Entry[Debt], order: RunStepRequest
) -> RemudaError | None:
    order.key.leader.CopyFrom(services.leader)
    try:
        async with asyncio.timeout(services.timing.debt_order):
            if order.WhichOneof("work") == "finish_incoming":
                seen = await services.agents.observe(host, InstanceId(order.key.instance_id))
                order.finish_incoming.paused = seen.power_state == Instance.POWER_STATE_PAUSED
            if _spares_the_living(order):
                await contain_second_copy(services, entry.value, order)
            await services.agents.run_step(host, order, on_progress=lambda _: None)
    except RemudaError as error:
        return error
    except TimeoutError:
        return RemudaError(
            Reason.DEADLINE_EXCEEDED, f"no answer within {services.timing.debt_order:g} s; it may go on"
        )
    return None


def _spares_the_living(order: RunStepRequest) -> bool:
    """Orders that a host rightly refuses for a guest that runs, however often they are given."""
    undo = order.key.direction == StepKey.DIRECTION_UNDO
    work = order.WhichOneof("work")
    return work == "release_source" or (work == "prepare_incoming" and undo)


async def _strike_off(services: Services, paid: Entry[Debt]) -> None:
    """The addresses that hang on it are free with the instance's last debt.

    One txn, or they would be lost with the debt that remembers them. One at a time, or the last two would
    each take the other for the last.
    """
    async with services.closing_debts:
        seen = await services.etcd.get(paid.key)
        if seen is None or Debt.FromString(seen.value).request != paid.value.request:
            return  # replaced meanwhile: it is owed in other words
        ports = Debt.FromString(seen.value).ports
        owed = await debts_of(services, instance=InstanceId(paid.value.instance_id)) if ports else []
        others = [other for other in owed if other.key != paid.key]
        handed_on = [
            ops.put(other.key, with_ports(other.value, ports).SerializeToString(deterministic=True))
            for other in others
        ]
        await services.leadership.txn(
            compare=[
                ops.mod_is(seen.key, seen.mod_revision),
                *(ops.mod_is(other.key, other.mod_revision) for other in others),
            ],
            success=[ops.delete(seen.key), *(handed_on if others else freed_ports(services.keys, ports))],
        )


def with_ports(debt: Debt, ports: Iterable[Port]) -> Debt:
    """The debt with these ports besides those that hang on it already."""
    changed = Debt()
    changed.CopyFrom(debt)
    known = {port.id for port in debt.ports}
    changed.ports.extend(port for port in ports if port.id not in known)
    return changed

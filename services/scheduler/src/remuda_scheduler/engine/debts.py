"""Clean-up that a host owes because it could not be reached. Paid when it attaches, or a while later.

A debt is the order as it could not be given, to be sent once more in the name of the present leader. The
agent's steps look before they act, so a debt that was paid without our knowing is paid again harmlessly.
"""

import asyncio

import structlog
from google.protobuf.any_pb2 import Any
from remuda.agent.v1.agent_pb2 import RunStepRequest
from remuda.compute.v1.host_pb2 import Host
from remuda.store.v1.host_pb2 import Debt
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.etcd.errors import EtcdError, NotLeader
from remuda_core.ids import HostId

from remuda_scheduler.addresses import freed_ports
from remuda_scheduler.engine.clock import now
from remuda_scheduler.engine.services import Services

_log = structlog.get_logger(__name__)

_SETTLED = frozenset({Reason.STALE_EPOCH, Reason.GUEST_STOPPED})
"""Refusals that leave nothing to do: the host holds a newer copy of the instance; the guest that was to be
finished has ended since."""


def debt_of(host: HostId, request: RunStepRequest) -> Debt:
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
    )


class DebtCollector:
    """Made anew for every term."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._turns: dict[HostId, asyncio.Lock] = {}

    async def run(self) -> None:
        """Pays what attached hosts owe, now and then: an order may have failed with its host there."""
        while True:
            owed = [HostId(entry.value.host_id) for entry in self._services.store.debts.items()]
            self._services.metrics.debts(len(owed))
            for host in dict.fromkeys(owed):
                status = self._services.store.host_status(host)
                if status is not None and status.state == Host.STATE_UP:
                    await self._try_to_pay(host)
            await asyncio.sleep(self._services.timing.debts_every)

    async def _try_to_pay(self, host: HostId) -> None:
        try:
            await self.pay_debts(host)
        except NotLeader:
            raise
        except EtcdError as error:
            _log.info("debts stay for now", host=host, error=str(error))

    async def pay_debts(self, host: HostId) -> int:
        """Pays what a host owes, oldest first; stops at the first that fails. Returns how many were paid."""
        paid = 0
        async with self._turns.setdefault(host, asyncio.Lock()):
            # From etcd: the cache may not show yet what an operation left a moment ago.
            prefix = f"{self._services.keys.debts}{host}/"
            found = [
                Entry(
                    key=kv.key,
                    value=Debt.FromString(kv.value),
                    create_revision=kv.create_revision,
                    mod_revision=kv.mod_revision,
                )
                for kv in (await self._services.etcd.range_prefix(prefix)).kvs
            ]
            for entry in sorted(found, key=lambda entry: (entry.create_revision, entry.key)):
                if not await self._pay(host, entry):
                    break
                paid += 1
        return paid

    async def _pay(self, host: HostId, entry: Entry[Debt]) -> bool:
        debt = entry.value
        log = _log.bind(host=host, operation=debt.operation_id, step=debt.step, instance=debt.instance_id)
        order = RunStepRequest()
        debt.request.Unpack(order)
        order.key.leader.CopyFrom(self._services.leader)
        try:
            await self._services.agents.run_step(host, order, on_progress=lambda _: None)
        except RemudaError as error:
            if error.reason not in _SETTLED:
                log.warning("debt not paid", error=str(error))
                return False
        # One txn, or the addresses would be lost with the debt that remembers them.
        await self._services.leadership.txn(
            compare=[ops.mod_is(entry.key, entry.mod_revision)],
            success=[ops.delete(entry.key), *freed_ports(self._services.keys, debt.ports)],
        )
        log.info("debt paid")
        return True

"""Has hosts pay what they owe: when they attach, and a while later, for an order may have failed with its
host there.

Order matters only between the debts of one instance on one host. So a debt that cannot be paid holds up that
instance there and nothing else, and a host that is slow to answer no other host.
"""

import asyncio

import structlog
from remuda.compute.v1.host_pb2 import Host
from remuda_core.errors import Reason
from remuda_core.etcd.errors import EtcdError, NotLeader
from remuda_core.ids import HostId, InstanceId

from remuda_scheduler.engine.debts import debts_of, pay
from remuda_scheduler.engine.services import Services

_log = structlog.get_logger(__name__)

_AT_ONCE = 4
"""Instances of one host."""


class DebtCollector:
    """Made anew for every term."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._hosts: dict[HostId, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled: a task for each attached host that owes something. Waits for none of them."""
        try:
            while True:
                owed = [HostId(entry.value.host_id) for entry in self._services.store.debts.items()]
                self._services.metrics.debts(len(owed))
                for host in dict.fromkeys(owed):
                    status = self._services.store.host_status(host)
                    up = status is not None and status.state == Host.STATE_UP
                    if up and host not in self._hosts:
                        self._begin(host)
                await asyncio.sleep(self._services.timing.debts_every)
        finally:
            for task in self._hosts.values():
                task.cancel()
            await asyncio.gather(*self._hosts.values(), return_exceptions=True)

    def _begin(self, host: HostId) -> None:
        task = asyncio.create_task(self._collect(host), name=f"debts of {host}")
        self._hosts[host] = task
        task.add_done_callback(lambda _: self._hosts.pop(host, None))

    async def _collect(self, host: HostId) -> None:
        try:
            await self.pay_debts(host)
        except NotLeader:
            return  # the engine ends with the term
        except EtcdError as error:
            _log.info("debts stay for now", host=host, error=str(error))
        except Exception:
            # A debt that breaks us must not keep the other hosts from paying.
            _log.exception("paying broke", host=host)

    async def pay_debts(self, host: HostId) -> int:
        """Pays what a host owes, as far as it can be paid. Returns how many were paid. Raises EtcdErrors."""
        found = await debts_of(self._services, host=host)
        instances = dict.fromkeys(InstanceId(entry.value.instance_id) for entry in found)
        round_ = _Round(self._services, host)
        ended = await asyncio.gather(*(round_.pay(one) for one in instances), return_exceptions=True)
        for result in ended:
            if isinstance(result, BaseException):
                raise result
        return round_.paid


class _Round:
    """One host's payments, over all of its instances."""

    def __init__(self, services: Services, host: HostId) -> None:
        self.paid = 0
        self._services = services
        self._host = host
        self._silent = False
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def pay(self, instance: InstanceId) -> None:
        """Oldest first; stops at the first that fails."""
        async with self._slots:
            if self._silent:
                return
            async with self._services.turn(self._host, instance):
                # Read under the turn: what an operation has paid or replaced meanwhile must not be given.
                for entry in await debts_of(self._services, host=self._host, instance=instance):
                    error = await pay(self._services, entry)
                    if error is not None:
                        self._silent = self._silent or error.reason is Reason.HOST_UNREACHABLE
                        return
                    self.paid += 1

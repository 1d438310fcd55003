"""The agent's side of HostRegistryService.Attach: find the leader, say hello, keep saying what is new.

Which scheduler leads is found by asking: a standby answers NOT_LEADER with the leader's endpoint, which is
taken over only when it is one of the configured schedulers' word; then the next is tried with jitter.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import structlog
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.compute.v1.host_pb2 import HostInventory
from remuda.scheduler.v1.registry_pb2 import AttachRequest, AttachResponse, Heartbeat, Hello, Welcome
from remuda.scheduler.v1.registry_pb2_grpc import HostRegistryServiceStub
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.first_status import FirstStatus
from remuda_core.rpc.status import from_rpc_error

from remuda_agent.inventory import InventorySource, without_free_space
from remuda_agent.observer import Observer
from remuda_agent.quarantine import Quarantine

_log = structlog.get_logger(__name__)

OpenChannel = Callable[[str], grpc.aio.Channel]
AttachCall: TypeAlias = "grpc.aio.StreamStreamCall[AttachRequest, AttachResponse]"

WELCOME_SECONDS = 5.0
INVENTORY_SECONDS = 30.0
"""How often the inventory is looked at; it is sent only when it changed by more than free space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostIdentity:
    """Who attaches."""

    host_id: str
    hostname: str
    boot_id: str
    agent_endpoint: str
    enrolment_token: str


class Attachment:
    """Keeps this host attached to whichever scheduler leads."""

    def __init__(
        self,
        *,
        identity: HostIdentity,
        schedulers: tuple[str, ...],
        open_channel: OpenChannel,
        observer: Observer,
        inventory: InventorySource,
        quarantine: Quarantine,
        changed: asyncio.Event,
    ) -> None:
        self._identity = identity
        self._schedulers = schedulers
        self._open_channel = open_channel
        self._observer = observer
        self._inventory = inventory
        self._quarantine = quarantine
        self._changed = changed
        """Set by whoever saw that domains may have changed."""
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._seq = 0
        self.attached_to = ""
        """Endpoint of the leader, empty while there is none."""

    async def run(self) -> None:
        """Until cancelled."""
        turn = 0
        endpoint = ""
        try:
            while True:
                target = endpoint or self._schedulers[turn % len(self._schedulers)]
                turn += not endpoint
                endpoint = await self._attach(target)
                if not endpoint:
                    await asyncio.sleep(random.uniform(0.1, 1.0))
        finally:
            for channel in self._channels.values():
                await channel.close()

    async def _attach(self, target: str) -> str:
        """One stream, until it ends. Returns where to go next, empty: try the others."""
        channel = self._channels.get(target) or self._channels.setdefault(target, self._open_channel(target))
        call = HostRegistryServiceStub(channel).Attach()
        first = FirstStatus(call)
        try:
            try:
                await self._converse(call, target)
            except asyncio.InvalidStateError:
                # A stream that the other side has ended refuses to be written; reading says why it ended.
                await call.read()
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(await first.real(failure))
            _log.info("not attached", scheduler=target, reason=str(error.reason), detail=error.message)
            if error.reason is Reason.NOT_LEADER:
                return self._known(error.metadata)
        except TimeoutError:
            _log.info("not attached", scheduler=target, reason="no welcome in time")
        except asyncio.InvalidStateError:  # grpc.aio: written to a stream that has just ended
            _log.info("not attached", scheduler=target, reason="the stream ended")
        except (
            RemudaError
        ) as error:  # the hypervisor (who cannot be looked at has nothing to say), or a verdict
            _log.warning("not attached", scheduler=target, reason=str(error.reason), detail=error.message)
        finally:
            self.attached_to = ""
            call.cancel()
        return ""

    def _known(self, metadata: Mapping[str, str]) -> str:
        endpoint = metadata.get("endpoint", "")
        return endpoint if endpoint in self._schedulers else ""

    async def _converse(self, call: AttachCall, target: str) -> None:
        inventory = await self._inventory.now()
        self._changed.clear()
        hello = Hello(
            host_id=self._identity.host_id,
            hostname=self._identity.hostname,
            boot_id=self._identity.boot_id,
            agent_endpoint=self._identity.agent_endpoint,
            enrolment_token=self._identity.enrolment_token,
            inventory=inventory,
            observations=await self._observer.everything(),
        )
        await call.write(AttachRequest(hello=hello))
        async with asyncio.timeout(WELCOME_SECONDS):
            first = await call.read()
        if not isinstance(first, AttachResponse) or not first.HasField("welcome"):
            return
        _log.info("attached", scheduler=target, leader_epoch=first.welcome.leader_epoch)
        self.attached_to = target
        interval = first.welcome.heartbeat_interval_ms / 1000 or 1.0
        reader = asyncio.create_task(self._listen(call, first.welcome))
        try:
            async for message in self._news(interval, inventory):
                if reader.done():
                    break
                await call.write(message)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        _raise_failure(reader)
        await call.read()  # raises the status with which the leader ended the stream

    async def _news(self, interval: float, sent: HostInventory) -> AsyncIterator[AttachRequest]:
        """A heartbeat per interval; observations as soon as something may have changed."""
        loop = asyncio.get_running_loop()
        next_beat = loop.time()
        next_inventory = loop.time() + INVENTORY_SECONDS
        warned = self._quarantine.warnings
        while True:
            if loop.time() >= next_beat:
                self._seq += 1
                yield AttachRequest(heartbeat=Heartbeat(boot_id=self._identity.boot_id, seq=self._seq))
                next_beat = loop.time() + interval
            if self._changed.is_set():
                self._changed.clear()
                yield AttachRequest(observations=await self._observer.everything())
            if self._quarantine.warnings != warned:
                warned = self._quarantine.warnings
                next_inventory = loop.time()
            if loop.time() >= next_inventory:
                next_inventory = loop.time() + INVENTORY_SECONDS
                await self._quarantine.look_again()
                now = await self._inventory.now()
                if now != sent:
                    # Free space is news for placement although the leader does not store it.
                    if without_free_space(now) != without_free_space(sent):
                        _log.info("the inventory has changed")
                    sent = now
                    yield AttachRequest(inventory=now)
            try:
                async with asyncio.timeout(max(0.0, next_beat - loop.time())):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _listen(self, call: AttachCall, welcome: Welcome) -> None:
        """Until the stream ends. Raises STALE_LEADER when a newer leader's orders were heard meanwhile,
        UNAVAILABLE when the verdicts cannot be kept: the stream is given up then, and begun anew.
        """
        leader = LeaderRef(cluster_id=welcome.cluster_id, epoch=welcome.leader_epoch)
        while isinstance(message := await call.read(), AttachResponse):
            if message.HasField("verdicts"):
                try:
                    await self._quarantine.hear(leader, message.verdicts.verdicts)
                except OSError as error:
                    raise RemudaError(Reason.UNAVAILABLE, f"verdicts cannot be kept: {error}") from error


def _raise_failure(task: "asyncio.Task[None]") -> None:
    """Only what we have found wrong ourselves: how the stream ended is told by reading it."""
    failure = None if task.cancelled() else task.exception()
    if isinstance(failure, RemudaError):
        raise failure

"""Stores what hosts do, and only what changed: states, inventories, what became of guests.

Every write is fenced by the leadership. A steady cluster writes nothing: heartbeats end in the registry.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from remuda.compute.v1.host_pb2 import Host, HostInventory
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import Hello, ObservedInstance
from remuda.store.v1.host_pb2 import HostStatus
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd.errors import EtcdError, NotLeader
from remuda_core.etcd.ops import absent, exists, mod_is, put
from remuda_core.ids import HostId, InstanceId

from remuda_scheduler.events import append_event
from remuda_scheduler.hosts.enrolment import check_token
from remuda_scheduler.hosts.liveness import host_state
from remuda_scheduler.hosts.observation import Absorbed, absorb
from remuda_scheduler.hosts.registry import HostRegistry, Session
from remuda_scheduler.ports import Leadership
from remuda_scheduler.store import StoreView

_log = structlog.get_logger(__name__)

Look = Callable[[HostId, InstanceId], Awaitable[ObservedInstance]]
"""Asks a host what it shows of an instance now. Raises RemudaError, HOST_UNREACHABLE when it is silent."""

LIVENESS_SECONDS = 1.0
_ATTEMPTS = 8
_CACHE_SECONDS = 5.0


class HostKeeper:
    """The leader's book of hosts. Lives as long as one leadership."""

    def __init__(
        self,
        *,
        leadership: Leadership,
        registry: HostRegistry,
        store: StoreView,
        look: Look,
    ) -> None:
        self._keys = store.keys
        self._leadership = leadership
        self._registry = registry
        self._look = look
        self._hosts = store.hosts
        self._statuses = store.host_statuses
        self._instances = store.statuses
        self._claims = store.claims

    def state(self, host: HostId) -> "Host.State.ValueType":
        """The state now; UNKNOWN while this leader has not heard of a host that was up."""
        entry = self._statuses.get(self._keys.host_status(host))
        return self._state(host, entry.value.state if entry else Host.STATE_ENROLLING)

    def _state(self, host: HostId, stored: "Host.State.ValueType") -> "Host.State.ValueType":
        return host_state(
            stored,
            attached=self._registry.attached(host),
            silent_seconds=self._registry.silent_seconds(host),
            limit_seconds=self._registry.unreachable_after,
        )

    async def admit(self, hello: Hello) -> None:
        """Checks that the host is registered and, the first time, its token; stores what is new.

        Raises: HOST_NOT_FOUND, ENROLMENT_REFUSED, DUPLICATE_HOST.
        """
        # First of all: a clone that is refused must leave nothing of itself in the record.
        try:
            self._registry.refuse_duplicate(hello)
        except RemudaError as duplicate:
            _log.error("two machines attach as one host", host=hello.host_id, detail=duplicate.message)
            raise
        host = HostId(hello.host_id)
        record = self._hosts.get(self._keys.host(host))
        if record is None:
            raise _not_registered(host)
        if record.value.display_name != hello.hostname:
            raise RemudaError(
                Reason.ENROLMENT_REFUSED,
                f"host {host} is registered as {record.value.display_name!r}, not as {hello.hostname!r}",
            )

        def change(status: HostStatus) -> None:
            if not status.enrolled:
                check_token(record.value, hello.enrolment_token)
            status.enrolled = True
            status.boot_id = hello.boot_id
            status.agent_endpoint = hello.agent_endpoint
            status.armed = hello.armed
            _take_inventory(status, hello.inventory)
            _enter(status, Host.STATE_UP)

        await self._change_host(host, change)

    async def inventory(self, session: Session, inventory: HostInventory) -> None:
        """Takes a new inventory over; stores it when more than free space changed."""
        session.inventory = inventory
        await self._change_host(session.host_id, lambda status: _take_inventory(status, inventory))

    async def observed(self, host: HostId, news: list[ObservedInstance], *, complete: bool) -> None:
        """Stores what changed for the instances that live there; `complete`: all others are absent."""
        for seen in news:
            await self._observe(host, InstanceId(seen.instance_id), seen)
        if not complete:
            return
        listed = {seen.instance_id for seen in news}
        for entry in list(self._instances.items()):
            instance = InstanceId(entry.key.removeprefix(self._keys.instance_statuses))
            if entry.value.host_id == host and instance not in listed:
                await self._observe(host, instance, _absent(instance))

    async def watch_liveness(self) -> None:
        """Notes silence and its end, until cancelled.

        The end too: a host may fall silent and speak again on one stream, or be taken for silent between its
        hello and its session. Only `admit` would store UP otherwise, which such a host does not pass again.
        """
        while True:
            await asyncio.sleep(LIVENESS_SECONDS)
            for entry in list(self._statuses.items()):
                host = HostId(entry.key.removeprefix(self._keys.host_statuses))
                state = self._noted(host, entry.value.state)
                if state == entry.value.state:
                    continue
                silent = round(self._registry.silent_seconds(host), 3)
                if state == Host.STATE_UNREACHABLE:
                    _log.warning("host is unreachable", host=host, silent=silent)
                else:
                    _log.info("host is heard again", host=host, silent=silent)
                try:
                    await self._change_host(host, partial(self._note, host))
                except NotLeader:
                    return
                except (EtcdError, RemudaError) as error:  # tried again at the next look
                    _log.warning("cannot store a host's state", host=host, error=str(error))

    def _note(self, host: HostId, status: HostStatus) -> None:
        _enter(status, self._noted(host, status.state))

    def _noted(self, host: HostId, stored: "Host.State.ValueType") -> "Host.State.ValueType":
        """What belongs in the record now, where `stored` is."""
        if stored not in (Host.STATE_UP, Host.STATE_UNREACHABLE):
            return stored  # ENROLLING and FENCED are left by an attach alone
        state = self._state(host, stored)
        return stored if state == Host.STATE_UNKNOWN else state

    async def watch_claims(self) -> None:
        """What was seen of an instance while an operation held it counts once it is idle. Until cancelled.

        Raises what made the cache fail.
        """
        async with self._claims.subscribe() as changes:
            async for change in changes:
                if change.new is not None:
                    continue
                instance = InstanceId(change.key.removeprefix(self._keys.claims))
                try:
                    await self._released(instance, change.mod_revision)
                except NotLeader:
                    return
                except EtcdError as error:  # looked at again when its host says something
                    _log.warning("released, and not looked at", instance=instance, error=str(error))

    async def watch_hosts(self) -> None:
        """A host that is deleted is not listened to any more. Until cancelled. Raises as `watch_claims`."""
        async with self._hosts.subscribe() as changes:
            async for change in changes:
                if change.new is None:
                    self._registry.forget(HostId(change.key.removeprefix(self._keys.hosts)))

    async def _released(self, instance: InstanceId, revision: int) -> None:
        # The operation wrote the status in the same transaction.
        await self._instances.wait_revision(revision, _CACHE_SECONDS)
        entry = self._instances.get(self._keys.instance_status(instance))
        session = self._registry.session(HostId(entry.value.host_id)) if entry else None
        if session is None or session.observation_sequence < 0:
            return
        seen = session.observed.get(instance) or _absent(instance)
        await self._observe(session.host_id, instance, seen)

    async def _observe(self, host: HostId, instance: InstanceId, seen: ObservedInstance) -> None:
        key, claim_key = self._keys.instance_status(instance), self._keys.claim(instance)
        for _ in range(_ATTEMPTS):
            entry, claim = self._instances.get(key), self._claims.get(claim_key)
            if entry is None:
                return
            found = await self._confirmed(entry.value, host, seen, held=claim is not None)
            if found is None:
                return
            # That no operation has begun or ended meanwhile is part of the decision.
            compare = [mod_is(key, entry.mod_revision)]
            compare += [absent(claim_key)] if claim is None else []
            events = [found.event] if found.event else []
            result = await self._leadership.txn(
                compare=compare, success=append_event(self._keys, instance, found.status, *events)
            )
            if result.succeeded:
                return
            await self._instances.wait_revision(result.revision, _CACHE_SECONDS)
            await self._claims.wait_revision(result.revision, _CACHE_SECONDS)
        _log.warning("observation not stored: its status kept changing", instance=instance)

    async def _confirmed(
        self, status: InstanceStatus, host: HostId, seen: ObservedInstance, *, held: bool
    ) -> Absorbed | None:
        """What to store; an observation that changes what the instance is, only after a second look.

        The one at hand may be older than an operation that ended a moment ago. The second look is younger
        than `status`, and the transaction that follows proves that nothing came in between.
        """
        found = absorb(status, host, seen, held=held)
        if found is None or found.event is None:
            return found
        try:
            again = await self._look(host, InstanceId(seen.instance_id))
        except RemudaError as error:  # it says everything once more when it attaches
            _log.info("observation not confirmed", host=host, instance=seen.instance_id, error=str(error))
            return None
        return absorb(status, host, again, held=held)

    async def _change_host(self, host: HostId, change: Callable[[HostStatus], None]) -> None:
        key = self._keys.host_status(host)
        for _ in range(_ATTEMPTS):
            entry = self._statuses.get(key)
            status = HostStatus()
            if entry is not None:
                status.CopyFrom(entry.value)
            change(status)
            if entry is not None and status == entry.value:
                return
            result = await self._leadership.txn(
                # The host may have been deleted: its status must not come back as a ghost.
                compare=[mod_is(key, entry.mod_revision if entry else 0), exists(self._keys.host(host))],
                success=[put(key, status.SerializeToString())],
            )
            await self._statuses.wait_revision(result.revision, _CACHE_SECONDS)
            if result.succeeded:
                return
            await self._hosts.wait_revision(result.revision, _CACHE_SECONDS)
            if self._hosts.get(self._keys.host(host)) is None:
                raise _not_registered(host)
        raise RemudaError(Reason.INTERNAL, f"the status of host {host} kept changing")


def _not_registered(host: HostId) -> RemudaError:
    return RemudaError(Reason.HOST_NOT_FOUND, f"host {host} is not registered", resource=f"hosts/{host}")


def _enter(status: HostStatus, state: "Host.State.ValueType") -> None:
    if status.state != state:
        status.state = state
        status.state_time.GetCurrentTime()


def _take_inventory(status: HostStatus, inventory: HostInventory) -> None:
    """Free space is not stored: it changes all the time and placement takes it from the session."""
    kept = HostInventory()
    kept.CopyFrom(inventory)
    for pool in kept.pools:
        pool.available_bytes = 0
    status.inventory.CopyFrom(kept)


def _absent(instance: InstanceId) -> ObservedInstance:
    now = Timestamp()
    now.GetCurrentTime()
    return ObservedInstance(instance_id=instance, power_state=Instance.POWER_STATE_ABSENT, observe_time=now)

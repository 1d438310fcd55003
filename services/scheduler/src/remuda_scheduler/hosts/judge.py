"""Verdicts for the hosts: from caches and sessions, and only what has changed since it was said.

A RELEASE is proven before it is said: the caches are brought up to the record that it follows from, and the
host is asked once more what it shows, because a source that has just been released is still in its last
observation. Both take time, so a task does them; until then the copy is on HOLD.
"""

import asyncio

import structlog
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import Verdict
from remuda.store.v1.instance_pb2 import EventRecord, InstanceStatus
from remuda_core.errors import RemudaError
from remuda_core.etcd.errors import EtcdError
from remuda_core.etcd.ops import get_prefix, mod_is
from remuda_core.ids import HostId, InstanceId

from remuda_scheduler.events import append_event
from remuda_scheduler.hosts.keeper import Look
from remuda_scheduler.hosts.registry import HostRegistry, Session
from remuda_scheduler.hosts.verdicts import HOLD, RELEASE, Placed, decide
from remuda_scheduler.ports import Leadership
from remuda_scheduler.store import StoreView

_log = structlog.get_logger(__name__)

STALE_COPY = "STALE_COPY_REFUSED"
"""Type of the event."""
_CACHE_SECONDS = 5.0
_ATTEMPTS = 4

Said = dict[InstanceId, tuple[int, "Verdict.Decision.ValueType"]]


class Judge:
    """Of one leadership."""

    def __init__(
        self, *, leadership: Leadership, registry: HostRegistry, store: StoreView, look: Look
    ) -> None:
        self._leadership = leadership
        self._registry = registry
        self._store = store
        self._look = look

    def verdicts(self, session: Session) -> Said:
        """On everything that the host shows."""
        current = self._current
        return {
            instance: (seen.epoch, self._verdict(session.host_id, instance, seen.epoch, current=current))
            for instance, seen in session.observed.items()
            if seen.epoch
        }

    async def prove(self, host: HostId, instance: InstanceId, epoch: int) -> bool:
        """Whether the copy is really to be released; tells it of the instance, once. Raises EtcdErrors,
        RemudaError when the host is silent.
        """
        entry = self._store.statuses.get(self._store.keys.instance_status(instance))
        if entry is None:
            return False
        # Whatever was begun before the record came to say so is seen after this.
        await self._store.claims.wait_revision(entry.mod_revision, _CACHE_SECONDS)
        again = await self._look(host, instance)
        if again.epoch != epoch or self._verdict(host, instance, epoch, current=self._current) != RELEASE:
            return False
        await self._tell(host, instance, epoch)
        return True

    @property
    def _current(self) -> bool:
        return self._store.statuses.connected and self._store.claims.connected

    def _verdict(
        self, host: HostId, instance: InstanceId, epoch: int, *, current: bool
    ) -> "Verdict.Decision.ValueType":
        entry = self._store.statuses.get(self._store.keys.instance_status(instance))
        record = _placed(entry.value) if entry is not None else None
        return decide(
            Placed(host=host, epoch=epoch),
            record,
            held=self._store.claim(instance) is not None,
            other_seen=record is not None and self._seen(instance, record),
            current=current,
        )

    def _seen(self, instance: InstanceId, copy: Placed) -> bool:
        session = self._registry.session(copy.host)
        seen = session.observed.get(instance) if session is not None else None
        return (
            seen is not None and seen.epoch == copy.epoch and seen.power_state != Instance.POWER_STATE_ABSENT
        )

    async def _tell(self, host: HostId, instance: InstanceId, epoch: int) -> None:
        event = InstanceEvent(
            type=STALE_COPY,
            severity=InstanceEvent.SEVERITY_WARNING,
            host=f"hosts/{host}",
            message=f"A copy of epoch {epoch} was found there: it is stale and never started again.",
            principal="system/scheduler",
        )
        keys, key = self._store.keys, self._store.keys.instance_status(instance)
        for _ in range(_ATTEMPTS):
            entry = self._store.statuses.get(key)
            if entry is None:
                return
            # Other terms of leaders have judged it too.
            told = await self._leadership.txn(success=[get_prefix(keys.events(instance))])
            if any(
                (known.type, known.host, known.message) == (event.type, event.host, event.message)
                for known in (EventRecord.FromString(kv.value).event for kv in told.responses[0].kvs)
            ):
                return
            status = InstanceStatus()
            status.CopyFrom(entry.value)
            result = await self._leadership.txn(
                compare=[mod_is(key, entry.mod_revision)],
                success=append_event(keys, instance, status, event),
            )
            if result.succeeded:
                _log.warning("a stale copy is refused", host=host, instance=instance, epoch=epoch)
                return
            await self._store.statuses.wait_revision(result.revision, _CACHE_SECONDS)


class Announcer:
    """Says every verdict to one stream, once."""

    def __init__(self, judge: Judge, session: Session) -> None:
        self._judge = judge
        self._session = session
        self._said: Said = {}
        self._proven: set[tuple[InstanceId, int]] = set()
        self._proof: asyncio.Task[None] | None = None

    def news(self) -> list[Verdict]:
        """Verdicts that differ from what was said last. Takes no time."""
        found = self._judge.verdicts(self._session)
        released = {(instance, epoch) for instance, (epoch, what) in found.items() if what == RELEASE}
        self._proven &= released
        doubtful = released - self._proven
        for instance, epoch in doubtful:
            found[instance] = (epoch, HOLD)
        if doubtful and self._proof is None:
            self._proof = asyncio.create_task(
                self._prove(sorted(doubtful)), name=f"stale copies of {self._session.host_id}"
            )
        news = [
            Verdict(instance_id=instance, epoch=epoch, decision=what)
            for instance, (epoch, what) in found.items()
            if self._said.get(instance) != (epoch, what)
        ]
        self._said = found
        return news

    async def end(self) -> None:
        if self._proof is not None:
            self._proof.cancel()
            await asyncio.gather(self._proof, return_exceptions=True)

    async def _prove(self, doubtful: list[tuple[InstanceId, int]]) -> None:
        try:
            for instance, epoch in doubtful:
                if await self._judge.prove(self._session.host_id, instance, epoch):
                    self._proven.add((instance, epoch))
        except (EtcdError, RemudaError) as error:  # it stays on HOLD, and is looked at again
            _log.info("a stale copy is not proven yet", host=self._session.host_id, error=str(error))
        finally:
            self._proof = None


def _placed(status: InstanceStatus) -> Placed | None:
    return Placed(host=HostId(status.host_id), epoch=status.epoch) if status.host_id else None

"""Refuses to set a copy running that nobody has confirmed in this boot of the host.

A host that comes back from a power failure does not know what was decided while it was away: its guests may
run elsewhere. So nothing is started before the leader has said KEEP for exactly that epoch. It forbids
starting and nothing else: what runs is never stopped, and an agent that is restarted within one boot goes on
with what it knew.

The design's words: durability, "Ownership epochs". The leader's side: remuda_scheduler.hosts.verdicts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import structlog
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.scheduler.v1.registry_pb2 import Verdict
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, InstanceId

from remuda_agent.leaders import LeaderGuard
from remuda_agent.quarantine import file
from remuda_agent.quarantine.standing import Decision, Found, Standing, begin

_log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
"""About a heartbeat: verdicts come with its answer."""

Find = Callable[[], Awaitable[Found]]


class Quarantine:
    """Of one host. Make it with `open`."""

    def __init__(
        self,
        path: Path,
        standing: Standing,
        found: Mapping[InstanceId, Epoch],
        *,
        find: Find,
        leaders: LeaderGuard,
        changed: Callable[[], None],
    ) -> None:
        self._path = path
        self._standing = standing
        self._find = find
        self._leaders = leaders
        self._changed = changed
        self._writing = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()
        # Only for show: what counts is `_standing`, which knows of everything that may run.
        self._waiting: dict[InstanceId, tuple[Epoch, Decision]] = {
            instance: (epoch, self._first_decision(instance, epoch))
            for instance, epoch in found.items()
            if not standing.may_run(instance, epoch)
        }

    @classmethod
    async def open(
        cls,
        directory: Path,
        boot_id: str,
        find: Find,
        *,
        leaders: LeaderGuard,
        changed: Callable[[], None] = lambda: None,
    ) -> Quarantine:
        """`find` looks for copies on this host. `changed` is called when what waits has changed."""
        found = (await find()).copies
        path = directory / "quarantine.json"
        known = await asyncio.to_thread(file.read, path)
        standing = begin(known, boot_id, found.keys())
        if standing != known:
            # Before anything is confirmed: a crash must not leave the pairs of the boot before to this one.
            await asyncio.to_thread(file.write, path, standing)
        made = cls(path, standing, found, find=find, leaders=leaders, changed=changed)
        if made.waiting:
            _log.warning(
                "copies wait to be confirmed by the leader", boot_id=boot_id, count=len(made.waiting)
            )
        return made

    @property
    def waiting(self) -> Mapping[InstanceId, tuple[Epoch, Decision]]:
        """Copies that are here and may not be started."""
        return self._waiting

    @property
    def copies(self) -> Mapping[InstanceId, Epoch]:
        """The epochs of `waiting`."""
        return {instance: epoch for instance, (epoch, _) in self._waiting.items()}

    @property
    def counts(self) -> Counter[Decision]:
        return Counter(decision for _, decision in self._waiting.values())

    @property
    def warnings(self) -> list[str]:
        """For the host's inventory."""
        stale = self.counts[Decision.RELEASE]
        waiting = len(self._waiting) - stale
        said = [f"{_copies(waiting)} for confirmation since the host was booted"] if waiting else []
        return said + ([f"{_copies(stale, 'stale')} to be removed"] if stale else [])

    def require(self, instance: InstanceId, epoch: Epoch) -> None:
        """Before the copy of that epoch is set running. Raises QUARANTINED: not yet; STALE_EPOCH: never."""
        self.refuse_released(instance, epoch)
        if self._standing.may_run(instance, epoch):
            return
        waiting = self._waiting.get(instance)
        decision = waiting[1] if waiting is not None and waiting[0] == epoch else Decision.NONE
        _log.warning(
            "not started: its copy is not confirmed", instance=instance, epoch=epoch, decision=decision
        )
        raise RemudaError(
            Reason.QUARANTINED,
            f"the host was booted, and the leader has not confirmed its copy of {instance} at epoch {epoch}",
            metadata={"instance": instance, "epoch": str(epoch), "decision": decision.value},
            retry_after_seconds=RETRY_SECONDS,
        )

    def refuse_released(self, instance: InstanceId, epoch: Epoch) -> None:
        """Raises STALE_EPOCH for a copy that was given up."""
        if not self._standing.is_released(instance, epoch):
            return
        _log.warning("refused: its copy was given up", instance=instance, epoch=epoch)
        raise RemudaError(
            Reason.STALE_EPOCH,
            f"this host has given up its copy of {instance} at epoch {epoch}: the instance lives elsewhere",
            metadata={"instance": instance, "epoch": str(epoch), "decision": Decision.RELEASE.value},
        )

    async def ordered(self, instance: InstanceId, epoch: Epoch) -> None:
        """The leader has the copy made here. Raises STALE_EPOCH for one that was given up."""
        self.refuse_released(instance, epoch)
        await self._become(lambda standing: standing.confirm(instance, epoch))
        self._settle(instance, epoch)

    async def given_up(self, instance: InstanceId, epoch: Epoch) -> None:
        """The leader has the copy removed, because the instance has moved away."""
        await self._become(lambda standing: standing.release(instance, epoch))
        self._settle(instance, epoch)

    async def removed(self, instance: InstanceId, epoch: Epoch) -> None:
        """The leader has had the copy removed."""
        await self._become(lambda standing: standing.forget(instance, epoch))
        self._settle(instance, epoch)

    async def look_again(self) -> None:
        """What was removed by other hands waits for nothing any more."""
        if not self._waiting:
            return
        found = await self._find()
        gone = [instance for instance in self._waiting if instance not in found.copies]
        if not found.complete or not gone:
            return
        for instance in gone:
            _log.info("a copy that waited is gone", instance=instance)
            del self._waiting[instance]
        self._changed()

    async def hear(self, leader: LeaderRef, verdicts: Iterable[Verdict]) -> None:
        """Takes the leader's word. Raises STALE_LEADER: a newer one has been acknowledged.

        It is acknowledged like an order: once a copy may run because of it, the leader before must not be
        able to have it started.
        """
        self._leaders.acknowledge(leader)
        said = [
            (InstanceId(one.instance_id), Epoch(one.epoch), Verdict.Decision.Name(one.decision))
            for one in verdicts
        ]

        def take(standing: Standing) -> Standing:
            for instance, epoch, decision in said:
                if decision == "DECISION_KEEP":
                    standing = standing.confirm(instance, epoch)
                elif decision == "DECISION_RELEASE":
                    standing = standing.release(instance, epoch)
            return standing

        before = dict(self._waiting)
        await self._become(take)
        for instance, epoch, decision in said:
            self._note(instance, epoch, decision)
        if self._waiting != before:
            self._changed()

    def _note(self, instance: InstanceId, epoch: Epoch, decision: str) -> None:
        log = _log.bind(instance=instance, epoch=epoch)
        if self._standing.may_run(instance, epoch):
            if instance in self._waiting:
                log.info("confirmed: it may be started")
                del self._waiting[instance]
        elif self._standing.is_released(instance, epoch):
            if decision == "DECISION_KEEP":
                log.error("the leader would keep a copy that it has given up: it stays refused")
            elif self._waiting.get(instance) != (epoch, Decision.RELEASE):
                log.warning("a stale copy: it is never started again")
            self._waiting[instance] = (epoch, Decision.RELEASE)
        else:
            self._waiting[instance] = (epoch, Decision.HOLD)

    def _settle(self, instance: InstanceId, epoch: Epoch) -> None:
        waiting = self._waiting.get(instance)
        if waiting is not None and waiting[0] <= epoch:
            del self._waiting[instance]
            self._changed()

    def _first_decision(self, instance: InstanceId, epoch: Epoch) -> Decision:
        return Decision.RELEASE if self._standing.is_released(instance, epoch) else Decision.NONE

    async def _become(self, change: Callable[[Standing], Standing]) -> None:
        """On disk before it counts. Whoever waits may be cancelled; the write is not, or the next one would
        overtake it.
        """
        task = asyncio.create_task(self._write(change))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        await asyncio.shield(task)

    async def _write(self, change: Callable[[Standing], Standing]) -> None:
        async with self._writing:
            standing = change(self._standing)
            if standing == self._standing:
                return
            await asyncio.to_thread(file.write, self._path, standing)
            self._standing = standing


def _copies(count: int, kind: str = "") -> str:
    noun = f"{kind} copy" if kind else "copy"
    nouns = f"{kind} copies" if kind else "copies"
    return f"1 {noun} waits" if count == 1 else f"{count} {nouns} wait"

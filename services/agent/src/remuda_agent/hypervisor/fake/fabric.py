"""What fake hosts have in common: the world, its clock, and who is told of changes.

In memory, one process plays hundreds of hosts. With a file, agents in processes of their own share it, and
find their domains and running jobs again after a restart.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from remuda_core.ids import InstanceId

from remuda_agent.hypervisor.fake import moves, saved
from remuda_agent.hypervisor.fake.clock import Clock, WallClock
from remuda_agent.hypervisor.fake.faults import Faults
from remuda_agent.hypervisor.fake.world import FakeDomain, FakeHost, FakeTimings, World
from remuda_agent.hypervisor.fanout import Fanout
from remuda_agent.hypervisor.model import HypervisorEvent, hypervisor_error

FILE_POLL_SECONDS = 0.05


class FakeFabric:
    """Hosts are known by name: what a migration's target_hostname says. ``timings`` may be replaced any time.

    The methods beside `transaction` are for tests: what a person would do to machines and guests.
    """

    def __init__(
        self, *, clock: Clock | None = None, timings: FakeTimings | None = None, file: Path | None = None
    ) -> None:
        self.clock: Clock = clock or WallClock()
        self.timings = timings or FakeTimings()
        self.faults: dict[str, Faults] = defaultdict(Faults)
        """By host name."""
        self.migration_failure: dict[str, tuple[float, str]] = {}
        """Source host name -> (seconds after the start, message): its next migration fails then."""
        self._world = World()
        self._file = file
        self._seen = ""
        self._heard: int | None = None
        """Number of the last event that was told here."""
        self._fanouts: dict[str, Fanout] = defaultdict(Fanout)
        self._waiting: set[asyncio.Future[None]] = set()
        self._users = 0
        self._pump: asyncio.Task[None] | None = None

    def fanout(self, host: str) -> Fanout:
        """The subscribers of a host's events."""
        return self._fanouts[host]

    @contextmanager
    def transaction(self) -> Iterator[World]:
        """The world, settled up to now. An exception keeps what was settled and changed before it."""
        with self._loaded() as world:
            settled, due = world.settle(self.clock.now()), world.next_due()
            try:
                yield world
                # A job without duration is over when the call that began it returns.
                world.settle(self.clock.now())
            finally:
                self._tell(world, woken=settled or world.next_due() != due)

    @contextmanager
    def _loaded(self) -> Iterator[World]:
        if self._file is None:
            yield self._world
            return
        with self._file.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            text = self._file.read_text() if self._file.exists() else ""
            if text != self._seen:
                self._wake()  # another process has written
            world = saved.load(text) if text else World()
            try:
                yield world
            finally:
                after = saved.dump(world)
                if after != text:
                    beside = self._file.with_suffix(".new")
                    beside.write_text(after)
                    beside.replace(self._file)
                self._seen = after

    def _tell(self, world: World, *, woken: bool) -> None:
        """What happened since this process told its subscribers last, whichever process made it happen."""
        if self._heard is None:
            # Before its first look there was nobody to tell: subscribing begins with a RELIST.
            self._heard = world.next_event - 1
        world.number_events(datetime.now(UTC).isoformat())
        fresh = [told for told in world.told if told.number > self._heard]
        if fresh and fresh[0].number > self._heard + 1:
            for fanout in self._fanouts.values():
                fanout.relist()
        for told in fresh:
            event = told.event
            self._fanouts[event.host].put(
                HypervisorEvent(
                    kind=event.kind,
                    instance_id=event.instance_id,
                    detail=event.detail,
                    time=datetime.fromisoformat(told.time),
                )
            )
        self._heard = world.next_event - 1
        if fresh or woken:
            self._wake()

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    @asynccontextmanager
    async def awake(self) -> AsyncIterator[None]:
        """While anybody is inside, what is due happens by itself and not only when somebody looks."""
        self._users += 1
        if self._users == 1:
            self._pump = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0 and self._pump is not None:
                self._pump.cancel()
                await asyncio.gather(self._pump, return_exceptions=True)
                self._pump = None

    async def change(self) -> None:
        """Wait until something may have changed; somebody has to be inside `awake`."""
        await self._next_change()

    def _next_change(self) -> asyncio.Future[None]:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)
        return waiting

    async def _run(self) -> None:
        while True:
            with self.transaction() as world:
                due = world.next_due()
            # Registered before anybody else can run: a job begun in between must shorten the wait.
            waits: list[asyncio.Future[None]] = [self._next_change()]
            if not math.isinf(due):
                waits.append(asyncio.ensure_future(self._until(due)))
            if self._file is not None:
                waits.append(asyncio.ensure_future(self._changed_by_another_process()))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)

    async def _until(self, due: float) -> None:
        await self.clock.sleep(due - self.clock.now())

    async def _changed_by_another_process(self) -> None:
        assert self._file is not None
        while not self._file.exists() or self._file.read_text() == self._seen:
            await asyncio.sleep(FILE_POLL_SECONDS)

    def add_host(self, name: str) -> FakeHost:
        """Known and reachable from then on; adding it again changes nothing."""
        with self.transaction() as world:
            return world.hosts.setdefault(name, FakeHost(name=name))

    def power_fail(self, name: str) -> None:
        """Every QEMU of the host dies; calls fail until `boot`."""
        with self.transaction() as world:
            moves.power_fail(world, name)

    def boot(self, name: str) -> None:
        """Power again: persistent domains are there, off."""
        with self.transaction() as world:
            world.hosts[name].up = True
        self._fanouts[name].relist()

    def cut(self, name: str) -> None:
        """Unplug the host's network; its own agent still reaches its hypervisor."""
        with self.transaction() as world:
            world.host(name).cut = True
            moves.cut_off(world, name, now=self.clock.now())

    def heal(self, name: str) -> None:
        """Plug it in again."""
        with self.transaction() as world:
            world.hosts[name].cut = False

    def kill_qemu(self, name: str, instance_id: InstanceId) -> None:
        """As SIGKILL would."""
        with self.transaction() as world:
            if world.domain(name, instance_id).live is None:
                raise hypervisor_error(f"{instance_id} does not run on {name}")
            world.power_off(name, instance_id, reason="crashed")

    def power_button_inside(self, name: str, instance_id: InstanceId) -> None:
        """The guest powers itself off now."""
        with self.transaction() as world:
            domain = world.domain(name, instance_id)
            domain.off_at = self.clock.now()
            world.stopping.add((name, instance_id))

    def domain(self, name: str, instance_id: InstanceId) -> FakeDomain | None:
        """For tests that look inside, for example at `guest_agent`; changes to it last in memory only."""
        with self.transaction() as world:
            return world.hosts[name].domains.get(instance_id)

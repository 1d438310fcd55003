"""Leaders that are killed or stopped as processes, with nothing left to do for their own good."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest_asyncio
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.election import observe
from remuda_core.testing.etcd import EtcdServer

CANDIDATE = Path(__file__).with_name("candidate.py")


class Candidate:
    """One process of candidate.py, and what it tells."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def told(self, event: str) -> dict[str, Any]:
        """The next thing it tells, which must be `event`."""
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            line = await self._process.stdout.readline()
        words: dict[str, Any] = json.loads(line)
        assert words["event"] == event, words
        return words

    def send(self, how: signal.Signals) -> None:
        self._process.send_signal(how)

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


Start = Callable[[str, int], Awaitable[Candidate]]


@pytest_asyncio.fixture
async def start(etcd_server: EtcdServer, etcd_prefix: str) -> AsyncIterator[Start]:
    """Start a candidate process by name and TTL; ended with the test."""
    async with AsyncExitStack() as stack:

        async def one(name: str, ttl: int) -> Candidate:
            command = [sys.executable, str(CANDIDATE), etcd_server.endpoint, etcd_prefix, name, str(ttl)]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            candidate = Candidate(process)
            stack.push_async_callback(candidate.end)
            await candidate.told("campaigns")
            return candidate

        yield one


@asynccontextmanager
async def leader_epochs(etcd: Etcd, key: str) -> AsyncIterator[Callable[[int], Awaitable[tuple[int, float]]]]:
    """A function that waits for an epoch above the given one: (epoch, when it was seen)."""
    infos = observe(etcd, key)

    async def above(epoch: int) -> tuple[int, float]:
        async with asyncio.timeout(60):
            async for info in infos:
                if info is not None and info.epoch > epoch:
                    return info.epoch, time.monotonic()
        raise AssertionError("the observation ended")

    yield above


async def test_a_killed_leader_is_followed_by_the_next_one_in_about_the_ttl(
    etcd: Etcd, etcd_prefix: str, start: Start
) -> None:
    ttl = 3
    first = await start("one", ttl)
    old = (await first.told("leads"))["epoch"]
    second = await start("two", ttl)
    async with leader_epochs(etcd, etcd_prefix + "leader") as above:
        await above(0)
        first.send(signal.SIGKILL)
        killed = time.monotonic()
        new, seen = await above(old)
        # Not before the lease can have ended: it is renewed every third of the TTL, or later.
        assert ttl / 3 <= seen - killed <= ttl + 10
        assert (await second.told("leads"))["epoch"] == new


async def test_a_stopped_leader_that_wakes_up_has_its_writes_refused_by_etcd(
    etcd: Etcd, etcd_prefix: str, start: Start
) -> None:
    """Three times: stopped in the middle of its writes for longer than the TTL, then woken."""
    key, written = etcd_prefix + "leader", etcd_prefix + "written"
    begin = (await etcd.range_key(key)).revision
    leader, other = await start("one", 1), None
    epoch = (await leader.told("leads"))["epoch"]
    other = await start("two", 1)
    for _ in range(3):
        leader.send(signal.SIGSTOP)
        new = (await other.told("leads"))["epoch"]
        assert new > epoch
        leader.send(signal.SIGCONT)
        refused = await leader.told("refused")
        assert refused["epoch"] == epoch
        leader, other, epoch = other, leader, new
    # etcd's own history: after an epoch began, nothing was written in the name of an older one.
    last = (await etcd.range_key(key)).revision
    current, writes = 0, dict[int, int]()
    async with etcd.watch_prefix(etcd_prefix, start_revision=begin + 1) as watch:
        async for batch in watch:
            for event in batch.events:
                if event.kv.key == key:
                    current = event.kv.create_revision or current
                elif event.kv.key == written:
                    assert int(event.kv.value) == current, "a stale write was accepted"
                    writes[current] = writes.get(current, 0) + 1
            if batch.revision >= last:
                break
    assert len(writes) == 4
    assert min(writes.values()) > 1

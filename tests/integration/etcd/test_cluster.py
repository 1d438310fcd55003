"""Three members, and the loss of some of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.election import Election
from remuda_core.etcd.errors import EtcdError, OutcomeUnknown, Unavailable
from remuda_core.etcd.model import Event
from remuda_core.etcd.ops import mod_is, put
from remuda_core.testing.etcd import EtcdCluster, etcd_cluster
from remuda_core.testing.waiting import wait_for


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    # Half of etcd's own election timeout: quick, and still calm on a busy machine.
    directory: Path = tmp_path_factory.mktemp("cluster")
    with etcd_cluster(directory, election_timeout_ms=500) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: EtcdCluster) -> Iterator[EtcdCluster]:
    yield running_cluster
    for member in running_cluster.members:
        if member.process is None:
            member.launch()
        member.resume()
    for member in running_cluster.members:
        member.wait_healthy()


@pytest_asyncio.fixture
async def clustered(cluster: EtcdCluster) -> AsyncIterator[Etcd]:
    async with Etcd.open(cluster.config(timeout_seconds=2.0)) as client:
        yield client


async def test_the_raft_leader_is_killed_under_writes_reads_and_a_watch(
    cluster: EtcdCluster, clustered: Etcd, etcd_prefix: str
) -> None:
    start = await clustered.put(etcd_prefix + "start", b"")
    stop = asyncio.Event()
    acknowledged: set[str] = set()
    unknown: set[str] = set()
    read_errors: list[EtcdError] = []
    reads = 0
    longest_gap, last_write = 0.0, time.monotonic()

    async def write() -> None:
        nonlocal longest_gap, last_write
        number = 0
        while not stop.is_set():
            number += 1
            key = f"{etcd_prefix}{number:06}"
            try:
                await clustered.put(key, b"")
            except OutcomeUnknown:
                unknown.add(key)
            else:
                acknowledged.add(key)
                longest_gap = max(longest_gap, time.monotonic() - last_write)
                last_write = time.monotonic()

    async def read() -> None:
        nonlocal reads
        while not stop.is_set():
            try:
                await clustered.get(etcd_prefix + "start")
                reads += 1
            except EtcdError as error:
                read_errors.append(error)
            await asyncio.sleep(0.01)

    events: list[Event] = []

    async def watch() -> None:
        async with clustered.watch_prefix(etcd_prefix, start_revision=start) as batches:
            async for batch in batches:
                events.extend(batch.events)

    tasks = [asyncio.create_task(one()) for one in (write, read, watch)]
    await wait_for(lambda: len(acknowledged) > 100, timeout=60)
    cluster.leader().kill()
    before = len(acknowledged)
    await wait_for(
        lambda: len(acknowledged) > before + 200, timeout=60, last_status=lambda: len(acknowledged)
    )
    stop.set()
    await asyncio.gather(*tasks[:2])
    last = await clustered.put(etcd_prefix + "end", b"")
    await wait_for(lambda: events[-1].kv.mod_revision == last, timeout=60)
    tasks[2].cancel()

    assert read_errors == []
    assert reads > 20
    found = {kv.key async for page in clustered.pages(etcd_prefix) for kv in page.kvs}
    assert acknowledged <= found, "an acknowledged write was lost"
    assert found - acknowledged - {etcd_prefix + "start", etcd_prefix + "end"} <= unknown
    # The watch: every key once, in the order of revisions.
    assert len(events) == len(found)
    assert {event.kv.key for event in events} == found
    revisions = [event.kv.mod_revision for event in events]
    assert revisions == sorted(set(revisions))
    # One write may hang for its whole deadline; a second one must not.
    assert longest_gap < clustered.config.timeout_seconds + 3


async def test_compare_and_swap_with_a_witness_counts_exactly_over_a_killed_raft_leader(
    cluster: EtcdCluster, clustered: Etcd, etcd_prefix: str
) -> None:
    key = etcd_prefix + "counter"
    revision = await clustered.put(key, b"0")

    async def count(revision: int, start: int, steps: int) -> int:
        for value in range(start + 1, start + steps + 1):
            result = await clustered.txn(
                compare=[mod_is(key, revision)], success=[put(key, b"%d" % value)], witness=key, timeout=15
            )
            assert result.succeeded
            revision = result.revision
        return revision

    revision = await count(revision, 0, 50)
    counting = asyncio.create_task(count(revision, 50, 150))
    await asyncio.sleep(0.03)
    cluster.leader().kill()
    await counting
    found = await clustered.get(key)
    assert found is not None
    assert (found.value, found.version) == (b"200", 201)


async def test_without_a_majority_nothing_is_written_and_it_is_said_soon(
    cluster: EtcdCluster, clustered: Etcd, etcd_prefix: str
) -> None:
    await clustered.put(etcd_prefix + "k", b"1")
    leader = cluster.leader()
    followers = [member for member in cluster.members if member is not leader]
    for member in followers:
        member.kill()
    # The survivor steps down within its election timeout; from then on it refuses at once, definitely.
    await wait_for(lambda: not leader.is_leader(), timeout=60)

    async def refused_for_good() -> bool:
        try:
            await clustered.txn(success=[put(etcd_prefix + "k", b"2")], timeout=1.0)
        except OutcomeUnknown:
            return False
        except Unavailable:
            return True
        raise AssertionError("written without a majority")

    await wait_for(refused_for_good, timeout=60)
    with pytest.raises(Unavailable):
        await clustered.get(etcd_prefix + "k")
    for member in followers:
        member.launch()
    seen = await wait_for(lambda: clustered.get(etcd_prefix + "k"), timeout=60, ignoring=(Unavailable,))
    # Late or never; once at most.
    assert seen.version <= 2


async def test_a_watch_leaves_a_member_that_was_cut_off_from_the_others(
    cluster: EtcdCluster, clustered: Etcd, etcd_prefix: str
) -> None:
    """A member without a leader would keep the stream open and silent; `hasleader` makes it end it."""
    leader = cluster.leader()
    lonely = next(member for member in cluster.members if member is not leader)
    others = [member for member in cluster.members if member is not lonely]
    async with (
        Etcd.open(lonely.config()) as etcd,
        etcd.watch_prefix(etcd_prefix) as watch,
    ):
        batches = aiter(watch)
        await anext(batches)
        reading = asyncio.ensure_future(anext(batches))
        # To the lonely member, stopped ones are as good as gone.
        for member in others:
            member.pause()
        await wait_for(
            lambda: "no leader" in watch.last_error, timeout=60, last_status=lambda: watch.last_error
        )
        for member in others:
            member.resume()
        await clustered.put(etcd_prefix + "k", b"")
        batch = await asyncio.wait_for(reading, 60)
        assert [event.kv.key for event in batch.events] == [etcd_prefix + "k"]


async def test_a_leadership_survives_the_death_of_the_raft_leader(
    cluster: EtcdCluster, clustered: Etcd, etcd_prefix: str
) -> None:
    async with Election(clustered, etcd_prefix + "leader", b"me", 10) as election:
        leadership = await election.campaign()
        cluster.leader().kill()
        kept_after = time.monotonic() + 9.0
        await wait_for(lambda: leadership.valid_until > kept_after, timeout=60)
        key = etcd_prefix + "k"
        result = await leadership.txn(
            compare=[mod_is(key, 0)], success=[put(key, b"")], witness=key, timeout=15
        )
        assert result.succeeded
        assert not leadership.lost.is_set()

"""Watches that outlive connections and etcd itself, without gap and without duplicate."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import Compacted, EtcdError, HistoryRewritten, Unavailable
from remuda_core.etcd.model import Event, EventKind, WatchBatch
from remuda_core.etcd.ops import delete, put
from remuda_core.etcd.watch import Watch
from remuda_core.testing.etcd import EtcdServer, etcd_server
from remuda_core.testing.tcp_proxy import TcpProxy, tcp_proxy
from remuda_core.testing.waiting import wait_for


class Collected:
    """Everything that a watch delivers, while it runs in the background."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.batches: list[WatchBatch] = []

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch.events]

    def until(self, revision: int) -> bool:
        return bool(self.batches) and self.batches[-1].revision >= revision

    def has_events(self, count: int) -> bool:
        return len(self.events) >= count

    def has_reconnected(self, times: int) -> bool:
        return self.watch.connected and self.watch.reconnects >= times

    async def run(self) -> None:
        async for batch in self.watch:
            self.batches.append(batch)


@asynccontextmanager
async def collecting(watch: Watch) -> AsyncIterator[Collected]:
    """The watch stands when this is entered."""
    async with watch:
        collected = Collected(watch)
        task = asyncio.create_task(collected.run())
        try:
            await wait_for(lambda: watch.connected or task.done(), timeout=60)
            yield collected
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_changes_come_in_order_and_a_transaction_in_one_batch(etcd: Etcd, etcd_prefix: str) -> None:
    start = await etcd.put(etcd_prefix + "a", b"1")
    await etcd.put(etcd_prefix + "a", b"2")
    async with collecting(etcd.watch_prefix(etcd_prefix, start_revision=start)) as seen:
        await etcd.put("/elsewhere" + etcd_prefix, b"")
        last = await etcd.txn(success=[put(etcd_prefix + "b", b"3"), delete(etcd_prefix + "a")])
        await wait_for(lambda: seen.until(last.revision), timeout=60, last_status=lambda: seen.batches)
    assert [(event.kind, event.kv.key[-1], event.kv.value) for event in seen.events] == [
        (EventKind.PUT, "a", b"1"),
        (EventKind.PUT, "a", b"2"),
        (EventKind.PUT, "b", b"3"),
        (EventKind.DELETE, "a", b""),
    ]
    assert [event.kv.mod_revision for event in seen.batches[-1].events[-2:]] == [last.revision] * 2


async def test_a_watch_from_now_keeps_its_now_over_a_reconnect(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd, etcd_prefix: str
) -> None:
    """Nothing was delivered before the connection broke, and what happened in between still comes."""
    async with collecting(behind_proxy.watch_prefix(etcd_prefix)) as seen:
        await proxy.cut()
        revision = await etcd.put(etcd_prefix + "missed", b"")
        await proxy.restore()
        await wait_for(lambda: seen.until(revision), timeout=60, last_status=lambda: seen.watch.last_error)
        assert [event.kv.key for event in seen.events] == [etcd_prefix + "missed"]
        assert seen.watch.reconnects >= 1
        assert seen.watch.last_error


async def test_etcd_is_killed_and_restarted_under_writes_and_the_watch_has_no_gap_and_no_duplicate(
    own_server: EtcdServer, own_etcd: Etcd, etcd_prefix: str
) -> None:
    start = await own_etcd.put(etcd_prefix + "start", b"")
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                await own_etcd.put(f"{etcd_prefix}{number:06}", b"%d" % number)
                if number % 5 == 0:
                    await own_etcd.delete(f"{etcd_prefix}{number - 1:06}")
            except EtcdError:
                # Applied or not: etcd's own history, below, is the measure.
                await asyncio.sleep(0.02)

    writer = asyncio.create_task(write())
    async with collecting(own_etcd.watch_prefix(etcd_prefix, start_revision=start)) as seen:
        for kills in range(1, 4):
            await wait_for(partial(seen.has_events, len(seen.events) + 100), timeout=60)
            own_server.kill()
            own_server.launch()
            await wait_for(partial(seen.has_reconnected, kills), timeout=60, last_status=own_server.log_tail)
        stop.set()
        await writer
        last = await own_etcd.put(etcd_prefix + "end", b"")
        await wait_for(lambda: seen.until(last), timeout=60, last_status=lambda: seen.watch.last_error)
    # A second watch, undisturbed, reads the same history from etcd.
    async with collecting(own_etcd.watch_prefix(etcd_prefix, start_revision=start)) as measure:
        await wait_for(lambda: measure.until(last), timeout=60)
    assert seen.events == measure.events
    revisions = [batch.revision for batch in seen.batches if batch.events]
    assert revisions == sorted(revisions)
    assert seen.watch.reconnects >= 3


async def test_a_network_that_falls_silent_is_noticed_and_the_watch_goes_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    arguments = ["--grpc-keepalive-min-time=500ms"]
    directory = tmp_path_factory.mktemp("etcd")
    with etcd_server(directory, election_timeout_ms=200, arguments=arguments) as server:
        async with tcp_proxy(server.endpoint) as proxy, Etcd.open(server.config()) as direct:
            config = server.config(endpoints=(proxy.endpoint,), silence_seconds=1.5)
            async with Etcd.open(config) as etcd, collecting(etcd.watch("/k")) as seen:
                proxy.freeze()
                revision = await direct.put("/k", b"")
                await wait_for(lambda: seen.watch.reconnects, timeout=60)
                assert "ping timeout" in seen.watch.last_error
                await proxy.cut()
                await proxy.restore()
                await wait_for(lambda: seen.until(revision), timeout=60)
                assert len(seen.events) == 1


async def test_answers_larger_than_a_message_are_put_together(etcd: Etcd, etcd_prefix: str) -> None:
    """etcd cuts what is beyond 2 MiB into fragments, also in the middle of a transaction."""
    start = await etcd.put(etcd_prefix + "a", bytes(1_000_000))
    for number in range(4):
        names = (f"{etcd_prefix}{number}-", f"{etcd_prefix}{number}+")
        last = (await etcd.txn(success=[put(name, bytes(700_000)) for name in names])).revision
    async with collecting(etcd.watch_prefix(etcd_prefix, start_revision=start)) as seen:
        await wait_for(lambda: seen.until(last), timeout=60)
    keys = [event.kv.key.removeprefix(etcd_prefix) for event in seen.events]
    assert keys == ["a", "0-", "0+", "1-", "1+", "2-", "2+", "3-", "3+"]
    assert sum(len(event.kv.value) for event in seen.events) == 6_600_000
    # No revision in two batches: a reader in between would see half of a transaction.
    revisions = [{event.kv.mod_revision for event in batch.events} for batch in seen.batches if batch.events]
    assert sum(map(len, revisions)) == len(set.union(*revisions)) == 5


async def test_a_progress_notification_moves_an_idle_watch_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    arguments = ["--experimental-watch-progress-notify-interval=100ms"]
    directory = tmp_path_factory.mktemp("etcd")
    with etcd_server(directory, election_timeout_ms=200, arguments=arguments) as server:
        async with Etcd.open(server.config()) as etcd, collecting(etcd.watch_prefix("/idle/")) as seen:
            revision = await etcd.put("/other", b"")
            await wait_for(lambda: seen.until(revision), timeout=60, last_status=lambda: seen.batches)
            assert seen.events == []
            # So that a compaction behind its back does not hurt it.
            await etcd.compact(revision, physical=True)
            server.restart()
            last = await etcd.put("/idle/k", b"")
            await wait_for(lambda: seen.until(last), timeout=60)
            assert [event.kv.key for event in seen.events] == ["/idle/k"]


async def test_a_watch_from_a_compacted_revision_says_so(own_etcd: Etcd) -> None:
    first = await own_etcd.put("/k", b"1")
    newest = await own_etcd.put("/k", b"2")
    await own_etcd.compact(newest)
    async with own_etcd.watch("/k", start_revision=first) as watch:
        with pytest.raises(Compacted) as caught:
            await anext(aiter(watch))
    assert caught.value.compact_revision == newest


async def test_a_compaction_while_the_connection_is_down_says_so_after_it(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd, etcd_prefix: str
) -> None:
    async with behind_proxy.watch_prefix(etcd_prefix) as watch:
        batches = aiter(watch)
        await anext(batches)
        await proxy.cut()
        await etcd.put(etcd_prefix + "k", b"1")
        await etcd.compact(await etcd.put(etcd_prefix + "k", b"2"))
        await proxy.restore()
        with pytest.raises(Compacted):
            await anext(batches)


async def test_an_etcd_restored_from_an_older_backup_is_noticed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A new, empty etcd on the same port stands for the restored one: its history is shorter."""
    directory = tmp_path_factory.mktemp("etcd")
    with etcd_server(directory / "old", election_timeout_ms=200) as old:
        async with Etcd.open(old.config()) as etcd:
            for _ in range(5):
                await etcd.put("/k", b"")
            async with etcd.watch("/k") as watch:
                batches = aiter(watch)
                await anext(batches)
                old.kill()
                old.directory = directory / "restored"
                old.directory.mkdir()
                old.start()
                with pytest.raises(HistoryRewritten):
                    await anext(batches)


async def test_one_key_is_watched_without_its_neighbours(etcd: Etcd, etcd_prefix: str) -> None:
    key = etcd_prefix + "k"
    async with collecting(etcd.watch(key)) as seen:
        await etcd.put(key + "2", b"")
        last = await etcd.put(key, b"")
        await wait_for(lambda: seen.until(last), timeout=60)
    assert [event.kv.key for event in seen.events] == [key]


async def test_closing_the_client_ends_its_watches(etcd_server: EtcdServer) -> None:
    async with Etcd.open(etcd_server.config()) as etcd:
        watch = etcd.watch("/k")
        batches = aiter(watch)
        await anext(batches)
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="closed"):
        await waiting


async def test_leaving_a_watch_ends_its_stream_in_etcd(own_server: EtcdServer, own_etcd: Etcd) -> None:
    def streams() -> str:
        lines = own_server.metrics().splitlines()
        return next(line for line in lines if line.startswith("etcd_debugging_mvcc_watcher_total ")).split()[
            1
        ]

    assert streams() == "0"
    async with own_etcd.watch("/k") as watch:
        await anext(aiter(watch))
        assert streams() == "1"
    await wait_for(lambda: streams() == "0", timeout=60, last_status=streams)


async def test_a_cancelled_reader_can_read_on_from_where_it_was(etcd: Etcd, etcd_prefix: str) -> None:
    """Cancelling ends the iterator; a new watch from `next_revision` continues it."""
    async with etcd.watch_prefix(etcd_prefix) as watch:
        batches = aiter(watch)
        await anext(batches)
        reading = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.05)
        reading.cancel()
        await asyncio.wait({reading})
    revision = await etcd.put(etcd_prefix + "k", b"")
    async with collecting(etcd.watch_prefix(etcd_prefix, start_revision=watch.next_revision)) as seen:
        await wait_for(lambda: seen.until(revision), timeout=60)
    assert len(seen.events) == 1

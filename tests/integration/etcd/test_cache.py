"""A prefix kept in memory: list, watch, list again, and what readers and subscribers see of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from remuda_core.etcd.cache import ChangeKind, PrefixCache
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import Unavailable
from remuda_core.etcd.model import KeyValue
from remuda_core.etcd.ops import delete, put
from remuda_core.testing.etcd import EtcdServer
from remuda_core.testing.tcp_proxy import TcpProxy
from remuda_core.testing.waiting import wait_for


def decode(kv: KeyValue) -> str | None:
    """As records do it: some keys are not ours, some cannot be read."""
    return None if kv.key.endswith("/journal") else kv.value.decode()


@asynccontextmanager
async def cached(etcd: Etcd, prefix: str) -> AsyncIterator[PrefixCache[str]]:
    async with PrefixCache(etcd, prefix, decode, page_size=50) as cache:
        yield cache


async def truth(etcd: Etcd, prefix: str) -> dict[str, tuple[str | None, int]]:
    found = await etcd.range_prefix(prefix)
    return {kv.key: (kv.value.decode(), kv.mod_revision) for kv in found.kvs}


def content(cache: PrefixCache[str]) -> dict[str, tuple[str, int]]:
    return {entry.key: (entry.value, entry.mod_revision) for entry in cache.items()}


async def test_it_lists_and_then_follows(etcd: Etcd, etcd_prefix: str) -> None:
    for number in range(120):
        await etcd.put(f"{etcd_prefix}{number:03}", b"old")
    async with cached(etcd, etcd_prefix) as cache:
        assert content(cache) == await truth(etcd, etcd_prefix)
        assert cache.connected or await wait_for(lambda: cache.connected, timeout=60)
        result = await etcd.txn(
            success=[
                put(etcd_prefix + "new", b"n"),
                put(etcd_prefix + "001", b"c"),
                delete(etcd_prefix + "002"),
            ]
        )
        await cache.wait_revision(result.revision, 10)
        assert content(cache) == await truth(etcd, etcd_prefix)
        entry = cache.get(etcd_prefix + "001")
        assert entry is not None
        assert (entry.value, entry.mod_revision) == ("c", result.revision)
        assert entry.create_revision < entry.mod_revision
        assert cache.get(etcd_prefix + "002") is None
        assert len(cache) == 120


async def test_a_snapshot_stays_while_the_cache_moves_on(etcd: Etcd, etcd_prefix: str) -> None:
    await etcd.put(etcd_prefix + "a", b"1")
    async with cached(etcd, etcd_prefix) as cache:
        pinned, listed = cache.pin(60), cache.items()
        await cache.wait_revision(await etcd.put(etcd_prefix + "a", b"2"), 10)
        await cache.wait_revision(await etcd.put(etcd_prefix + "b", b"3"), 10)
        assert [entry.value for entry in listed] == ["1"]
        found = cache.pinned(pinned.revision)
        assert found is pinned
        assert [entry.value for entry in found.items()] == ["1"]
        assert [entry.value for entry in cache.snapshot().items()] == ["2", "3"]
        # What the snapshot shows is what etcd has at that revision: another replica can serve the next page.
        page = await etcd.range_prefix(etcd_prefix, revision=pinned.revision)
        assert [kv.value for kv in page.kvs] == [b"1"]


async def test_pins_expire_and_their_number_is_bounded(etcd: Etcd, etcd_prefix: str) -> None:
    async with cached(etcd, etcd_prefix) as cache:
        expired = cache.pin(-1)
        assert cache.pinned(expired.revision) is None
        first = cache.pin(60)
        assert cache.pinned(first.revision) is first
        for _ in range(300):
            await cache.wait_revision(await etcd.put(etcd_prefix + "k", b""), 10)
            cache.pin(60)
        assert cache.pinned(first.revision) is None
        assert cache.pinned(cache.revision) is not None
        assert len(cache._pins) <= 256


async def test_waiting_for_a_revision_that_changed_nothing_here_costs_one_question(
    etcd: Etcd, etcd_prefix: str
) -> None:
    await etcd.put(etcd_prefix + "mine", b"")
    await etcd.put(etcd_prefix + "x/journal", b"")
    async with cached(etcd, etcd_prefix) as cache:
        revision = await etcd.put("/elsewhere" + etcd_prefix, b"")
        asked = 0
        newest = etcd.newest

        async def counted(prefix: str) -> tuple[int, int, int]:
            nonlocal asked
            asked += 1
            return await newest(prefix)

        etcd.newest = counted  # type: ignore[method-assign]
        await asyncio.gather(*(cache.wait_revision(revision, 10) for _ in range(20)))
        assert cache.revision >= revision
        assert asked == 1


async def test_waiting_for_a_revision_ends_at_its_limit(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd, etcd_prefix: str
) -> None:
    async with cached(behind_proxy, etcd_prefix) as cache:
        await proxy.cut()
        revision = await etcd.put(etcd_prefix + "k", b"")
        with pytest.raises(Unavailable, match="was asked for"):
            await cache.wait_revision(revision, 0.5)
        await proxy.restore()
        await cache.wait_revision(revision, 10)
        assert cache.get(etcd_prefix + "k") is not None


async def test_the_probe_is_not_fooled_by_what_the_watch_has_not_brought_yet(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd, etcd_prefix: str
) -> None:
    """The watch is down, the probe's own connection is not: it must see that something has changed."""
    for key in ("a", "b"):
        await etcd.put(etcd_prefix + key, b"1")
    async with cached(behind_proxy, etcd_prefix) as cache:
        await wait_for(lambda: cache.connected, timeout=60)
        behind_proxy.newest = etcd.newest  # type: ignore[method-assign]
        for change in (
            [put(etcd_prefix + "a", b"2")],
            [delete(etcd_prefix + "a")],
            [delete(etcd_prefix + "b"), put(etcd_prefix + "c", b"3")],
        ):
            await proxy.cut()
            revision = (await etcd.txn(success=change)).revision
            with pytest.raises(Unavailable):
                await cache.wait_revision(revision, 0.3)
            await proxy.restore()
            await cache.wait_revision(revision, 10)
            assert content(cache) == await truth(etcd, etcd_prefix)


async def test_after_a_compaction_it_lists_again_and_subscribers_get_the_differences(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd, etcd_prefix: str
) -> None:
    for key in ("changed", "deleted", "same"):
        await etcd.put(etcd_prefix + key, b"1")
    async with cached(behind_proxy, etcd_prefix) as cache, cache.subscribe() as changes:
        await wait_for(lambda: cache.connected, timeout=60)
        deleted = cache.get(etcd_prefix + "deleted")
        await proxy.cut()
        changed = await etcd.put(etcd_prefix + "changed", b"2")
        await etcd.delete(etcd_prefix + "deleted")
        # Recreated with the same value: another record all the same.
        await etcd.delete(etcd_prefix + "same")
        recreated = await etcd.put(etcd_prefix + "same", b"1")
        newest = await etcd.put(etcd_prefix + "new", b"4")
        await etcd.compact(newest)
        await proxy.restore()
        await cache.wait_revision(newest, 10)
        assert cache.relists == 1
        assert content(cache) == await truth(etcd, etcd_prefix)
        async with asyncio.timeout(60):
            got = {one.key.removeprefix(etcd_prefix): one for one in [await anext(changes) for _ in range(4)]}
        assert got["changed"].mod_revision == changed
        assert got["new"].old is None
        assert got["same"].mod_revision == recreated
        assert got["deleted"].kind is ChangeKind.DELETE
        assert got["deleted"].old == deleted
        assert got["deleted"].mod_revision >= newest
        # And the watch goes on from there.
        await etcd.delete(etcd_prefix + "new")
        assert (await anext(changes)).kind is ChangeKind.DELETE


async def test_etcd_is_killed_under_writes_and_the_cache_ends_up_equal(
    own_server: EtcdServer, own_etcd: Etcd, etcd_prefix: str
) -> None:
    async with cached(own_etcd, etcd_prefix) as cache, cache.subscribe(queue_size=10_000) as changes:
        written = [await own_etcd.put(f"{etcd_prefix}{number}", b"1") for number in range(50)]
        own_server.restart()
        written += [await own_etcd.put(f"{etcd_prefix}{number}", b"2") for number in range(50)]
        await cache.wait_revision(written[-1], 20)
        assert content(cache) == await truth(own_etcd, etcd_prefix)
        async with asyncio.timeout(60):
            got = [(await anext(changes)).mod_revision for _ in written]
        assert got == written
        assert cache.relists == 0


async def test_it_starts_before_etcd_does(own_server: EtcdServer, own_etcd: Etcd, etcd_prefix: str) -> None:
    await own_etcd.put(etcd_prefix + "k", b"1")
    own_server.kill()
    async with Etcd.open(own_server.config(timeout_seconds=0.5)) as etcd:
        cache = PrefixCache(etcd, etcd_prefix, decode)
        starting = asyncio.create_task(cache.__aenter__())
        await wait_for(lambda: cache.last_error, timeout=60)
        own_server.start()
        await starting
        assert len(cache) == 1
        await cache.__aexit__(None, None, None)


async def test_a_record_that_cannot_be_decoded_is_left_out_named_and_comes_back_when_mended(
    etcd: Etcd, etcd_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    await etcd.put(etcd_prefix + "good", b"1")
    await etcd.put(etcd_prefix + "bad", b"\xff")
    async with cached(etcd, etcd_prefix) as cache, cache.subscribe(initial=True) as changes:
        assert [entry.value for entry in cache.items()] == ["1"]
        assert list(cache.undecodable) == [etcd_prefix + "bad"]
        assert "UnicodeDecodeError" in cache.undecodable[etcd_prefix + "bad"]
        assert "cannot decode" in caplog.text
        async with asyncio.timeout(60):
            # Taken first: changes of one key that nobody has taken yet are merged.
            got = [await anext(changes)]
            await etcd.put(etcd_prefix + "good", b"\xff")
            await etcd.put(etcd_prefix + "bad", b"2")
            got += [await anext(changes) for _ in range(2)]
        # To subscribers, a record that became unreadable is gone.
        assert [(one.kind.value, one.key[-4:]) for one in got] == [
            ("PUT", "good"),
            ("DELETE", "good"),
            ("PUT", "/bad"),
        ]
        assert list(cache.undecodable) == [etcd_prefix + "good"]
        # The count behind `wait_revision` knows about them.
        await cache.wait_revision(await etcd.put("/elsewhere" + etcd_prefix, b""), 10)
        await etcd.delete(etcd_prefix + "good")
        await wait_for(lambda: not cache.undecodable, timeout=60)


async def test_closing_the_cache_ends_its_subscribers(etcd: Etcd, etcd_prefix: str) -> None:
    async with cached(etcd, etcd_prefix) as cache:
        changes = cache.subscribe()

        async def follow() -> list[object]:
            return [change async for change in changes]

        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
    assert await asyncio.wait_for(following, 60) == []
    with pytest.raises(Unavailable, match="not running"):
        await anext(cache.subscribe())


async def test_many_subscribers_cost_etcd_one_watch(own_server: EtcdServer, own_etcd: Etcd) -> None:
    async with cached(own_etcd, "/p/") as cache:
        await wait_for(lambda: cache.connected, timeout=60)
        subscriptions = [cache.subscribe() for _ in range(50)]
        await own_etcd.put("/p/k", b"1")
        async with asyncio.timeout(60):
            got = [await anext(one) for one in subscriptions]
        assert {one.key for one in got} == {"/p/k"}
        assert "etcd_debugging_mvcc_watcher_total 1\n" in own_server.metrics()

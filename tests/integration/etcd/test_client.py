"""Keys, transactions, pages and what happens to calls while etcd is away. Against a real etcd."""

import asyncio
import time

import pytest
from remuda_core.etcd.client import Etcd, EtcdConfig
from remuda_core.etcd.errors import (
    Compacted,
    FutureRevision,
    InvalidRequest,
    OutcomeUnknown,
    TooLarge,
    Unavailable,
)
from remuda_core.etcd.model import KeyValue
from remuda_core.etcd.ops import (
    MAX_OPS,
    absent,
    absent_prefix,
    create_is,
    delete,
    delete_prefix,
    exists,
    get,
    get_prefix,
    mod_is,
    put,
    value_is,
)
from remuda_core.testing.etcd import EtcdServer, free_ports
from remuda_core.testing.tcp_proxy import TcpProxy, tcp_proxy


async def fill(etcd: Etcd, prefix: str, count: int) -> int:
    """Put `count` keys, return the revision of the last one."""
    revision = 0
    for start in range(0, count, MAX_OPS):
        keys = range(start, min(start + MAX_OPS, count))
        result = await etcd.txn(success=[put(f"{prefix}{key:06}", b"first") for key in keys])
        revision = result.revision
    return revision


# --- keys ---


async def test_a_key_is_put_read_and_deleted(etcd: Etcd, etcd_prefix: str) -> None:
    key = etcd_prefix + "schlüssel-语"
    assert await etcd.get(key) is None
    created = await etcd.put(key, b"\x00one")
    changed = await etcd.put(key, b"two")
    found = await etcd.get(key)
    assert found is not None
    assert (found.key, found.value, found.version, found.lease) == (key, b"two", 2, 0)
    assert (found.create_revision, found.mod_revision) == (created, changed)
    past = await etcd.get(key, revision=created)
    assert past is not None
    assert past.value == b"\x00one"
    assert await etcd.delete(key) is True
    assert await etcd.delete(key) is False
    assert await etcd.get(key) is None


async def test_a_prefix_is_counted_read_and_deleted_without_its_neighbours(
    etcd: Etcd, etcd_prefix: str
) -> None:
    await fill(etcd, etcd_prefix + "a/", 3)
    # The first key after the prefix, and one before it.
    await etcd.put(etcd_prefix + "a0", b"")
    await etcd.put(etcd_prefix + "a", b"")
    assert await etcd.count(etcd_prefix + "a/") == 3
    found = await etcd.range_prefix(etcd_prefix + "a/", limit=2)
    assert [kv.key for kv in found.kvs] == [etcd_prefix + "a/000000", etcd_prefix + "a/000001"]
    assert (found.more, found.count) == (True, 3)
    assert await etcd.delete_prefix(etcd_prefix + "a/") == 3
    assert await etcd.count(etcd_prefix) == 2


async def test_status_tells_version_and_who_leads(etcd: Etcd) -> None:
    status = await etcd.status()
    assert status.version.startswith("3.")
    assert status.leader_id == status.member_id != 0
    assert status.errors == ()
    assert status.db_size_bytes >= status.db_size_in_use_bytes > 0


# --- transactions ---


async def test_a_transaction_applies_one_branch_and_tells_which(etcd: Etcd, etcd_prefix: str) -> None:
    key = etcd_prefix + "k"
    first = await etcd.txn(compare=[absent(key)], success=[put(key, b"1")], failure=[get(key)])
    assert first.succeeded
    again = await etcd.txn(compare=[absent(key)], success=[put(key, b"2")], failure=[get(key)])
    assert not again.succeeded
    seen = again.responses[0].kv
    assert seen is not None
    assert (seen.value, seen.create_revision) == (b"1", first.revision)
    assert again.cluster_id == (await etcd.status()).cluster_id


async def test_each_comparison_holds_when_it_should_and_only_then(etcd: Etcd, etcd_prefix: str) -> None:
    key, missing = etcd_prefix + "k", etcd_prefix + "missing"
    created = await etcd.put(key, b"1")
    changed = await etcd.put(key, b"2")
    cases = [
        (absent(missing), True),
        (absent(key), False),
        (exists(key), True),
        (exists(missing), False),
        (create_is(key, created), True),
        (create_is(key, changed), False),
        (mod_is(key, changed), True),
        (mod_is(key, created), False),
        (mod_is(missing, 0), True),
        (value_is(key, b"2"), True),
        (value_is(key, b"1"), False),
        (value_is(missing, b""), False),
        (absent_prefix(etcd_prefix), False),
        (absent_prefix(missing), True),
    ]
    for compare, holds in cases:
        assert (await etcd.txn(compare=[compare])).succeeded is holds, compare


async def test_operations_of_a_transaction_answer_in_order(etcd: Etcd, etcd_prefix: str) -> None:
    await fill(etcd, etcd_prefix + "old/", 3)
    result = await etcd.txn(
        success=[
            put(etcd_prefix + "new", b"n"),
            get_prefix(etcd_prefix + "old/", limit=2),
            delete(etcd_prefix + "missing"),
            delete_prefix(etcd_prefix + "old/"),
            get(etcd_prefix + "old/000000"),
        ]
    )
    assert [len(one.kvs) for one in result.responses] == [0, 2, 0, 0, 0]
    assert [one.deleted for one in result.responses] == [0, 0, 0, 3, 0]
    assert result.responses[4].kv is None


async def test_of_many_compare_and_swaps_on_one_revision_exactly_one_wins(
    etcd: Etcd, etcd_prefix: str
) -> None:
    key = etcd_prefix + "counter"
    await etcd.put(key, b"0")

    async def increment() -> int:
        """Tries it took."""
        for tries in range(1, 1000):
            seen = await etcd.get(key)
            assert seen is not None
            result = await etcd.txn(
                compare=[mod_is(key, seen.mod_revision)], success=[put(key, b"%d" % (int(seen.value) + 1))]
            )
            if result.succeeded:
                return tries
        raise AssertionError("never won")

    tries = await asyncio.gather(*(increment() for _ in range(30)))
    final = await etcd.get(key)
    assert final is not None
    assert final.value == b"30"
    assert sum(tries) > 30, "nobody ever lost: the increments did not compete"


async def test_what_etcd_refuses_comes_as_its_own_error(etcd: Etcd, etcd_prefix: str) -> None:
    with pytest.raises(TooLarge):
        await etcd.put(etcd_prefix + "big", bytes(1_600_000))
    # Beyond etcd's limit for a gRPC message, refused by another layer in other words.
    with pytest.raises(TooLarge):
        await etcd.put(etcd_prefix + "big", bytes(3_000_000))
    with pytest.raises(TooLarge):
        await etcd.txn(success=[put(f"{etcd_prefix}{n}", b"") for n in range(MAX_OPS + 1)])
    with pytest.raises(InvalidRequest, match="duplicate key"):
        await etcd.txn(success=[put(etcd_prefix, b"1"), put(etcd_prefix, b"2")])
    assert await etcd.count(etcd_prefix) == 0


# --- pages ---


async def test_pages_show_one_revision_while_others_write(etcd: Etcd, etcd_prefix: str) -> None:
    await fill(etcd, etcd_prefix, 1000)
    before = await etcd.range_prefix(etcd_prefix)
    seen: list[KeyValue] = []
    revisions: set[int] = set()
    async for page in etcd.pages(etcd_prefix, page_size=37):
        seen += page.kvs
        revisions.add(page.revision)
        # Behind and ahead of where the walk stands: changed, gone and new keys.
        at = len(seen)
        await asyncio.gather(
            *(etcd.put(f"{etcd_prefix}{(at + 400 * n) % 1000:06}", b"second") for n in range(3)),
            *(etcd.delete(f"{etcd_prefix}{(at + 1 + 400 * n) % 1000:06}") for n in range(3)),
            *(etcd.put(f"{etcd_prefix}{(at + 2 + 400 * n) % 1000:06}.new", b"") for n in range(3)),
        )
    assert seen == list(before.kvs)
    assert revisions == {before.revision}
    # Another replica, given the revision, reads the same.
    again = [kv async for page in etcd.pages(etcd_prefix, revision=before.revision) for kv in page.kvs]
    assert again == seen
    assert (await etcd.range_prefix(etcd_prefix)).kvs != before.kvs


async def test_pages_go_on_after_a_key_and_an_empty_prefix_has_one_empty_page(
    etcd: Etcd, etcd_prefix: str
) -> None:
    await fill(etcd, etcd_prefix, 10)
    pages = [page async for page in etcd.pages(etcd_prefix, page_size=4, start_after=f"{etcd_prefix}000002")]
    assert [[kv.key[-1] for kv in page.kvs] for page in pages] == [["3", "4", "5", "6"], ["7", "8", "9"]]
    empty = [page async for page in etcd.pages(etcd_prefix + "nothing/")]
    assert [(page.kvs, page.more, page.revision > 0) for page in empty] == [((), False, True)]


async def test_a_page_of_a_compacted_or_future_revision_says_so(own_etcd: Etcd, etcd_prefix: str) -> None:
    revision = await fill(own_etcd, etcd_prefix, 300)
    pages = own_etcd.pages(etcd_prefix, page_size=100)
    await anext(pages)
    newest = await own_etcd.put(etcd_prefix + "more", b"")
    await own_etcd.compact(newest, physical=True)
    with pytest.raises(Compacted):
        await anext(pages)
    with pytest.raises(Compacted):
        await own_etcd.get(etcd_prefix + "000000", revision=revision)
    with pytest.raises(FutureRevision):
        await own_etcd.range_prefix(etcd_prefix, revision=newest + 1000)


# --- etcd is away ---


async def test_without_etcd_reads_and_writes_end_as_unavailable_at_their_deadline() -> None:
    (port,) = free_ports(1)
    config = EtcdConfig(endpoints=(f"127.0.0.1:{port}",), timeout_seconds=0.4)
    async with Etcd.open(config) as etcd:
        before = time.monotonic()
        with pytest.raises(Unavailable):
            await etcd.get("/k")
        # Definite: no connection ever stood, so that the write was not sent.
        with pytest.raises(Unavailable):
            await etcd.put("/k", b"")
        assert 0.7 < time.monotonic() - before < 30


async def test_calls_made_while_etcd_restarts_are_answered(own_server: EtcdServer, own_etcd: Etcd) -> None:
    await own_etcd.put("/k", b"1")
    own_server.kill()
    reading = asyncio.create_task(own_etcd.get("/k"))
    # By then the client knows that the connection is gone: a write into the dying one has an unknown outcome.
    await asyncio.sleep(1.0)
    writing = asyncio.create_task(own_etcd.put("/j", b"2"))
    await asyncio.sleep(0.05)
    own_server.launch()
    read, written = await asyncio.gather(reading, writing)
    assert read is not None
    assert read.value == b"1"
    found = await own_etcd.get("/j")
    assert found is not None
    assert found.mod_revision == written


async def test_a_write_that_was_sent_and_not_answered_has_an_unknown_outcome(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd, etcd_prefix: str
) -> None:
    await behind_proxy.put(etcd_prefix + "warm", b"")
    proxy.freeze()
    with pytest.raises(OutcomeUnknown):
        await behind_proxy.txn(success=[put(etcd_prefix + "k", b"1")], timeout=0.3)
    # A broken connection is as silent as a deadline.
    writing = asyncio.create_task(behind_proxy.put(etcd_prefix + "j", b"1"))
    await asyncio.sleep(0.3)
    await proxy.cut()
    with pytest.raises(OutcomeUnknown):
        await writing
    # And it was not sent a second time when the network came back.
    await proxy.restore()
    # A read, which is sent again when it meets the broken connection; a write would be in doubt once more.
    assert await behind_proxy.get(etcd_prefix + "warm") is not None
    assert await etcd.get(etcd_prefix + "j") is None


async def test_a_read_whose_member_falls_silent_is_sent_to_another(etcd_server: EtcdServer) -> None:
    """Both addresses lead to one etcd; one of them swallows everything."""
    async with tcp_proxy(etcd_server.endpoint) as dead, tcp_proxy(etcd_server.endpoint) as alive:
        config = etcd_server.config(endpoints=(dead.endpoint, alive.endpoint), timeout_seconds=1.0)
        async with Etcd.open(config) as etcd:
            for _ in range(10):
                await etcd.get("/k")
            assert dead.connections
            assert alive.connections
            dead.freeze()
            for _ in range(3):
                await etcd.get("/k")


async def test_a_witness_settles_a_write_that_was_applied_but_not_answered(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd, etcd_prefix: str
) -> None:
    key = etcd_prefix + "journal"
    revision = await behind_proxy.put(key, b"step 1")

    async def lose_the_answer() -> None:
        # The request passes, then the network dies before the answer.
        async with etcd.watch(key, start_revision=revision + 1) as watch:
            proxy.freeze_answers()
            async for batch in watch:
                if batch.events:
                    break
        await proxy.cut()
        await proxy.restore()

    losing = asyncio.create_task(lose_the_answer())
    await asyncio.sleep(0)
    result = await behind_proxy.txn(
        compare=[mod_is(key, revision)], success=[put(key, b"step 2")], failure=[get(key)], witness=key
    )
    await losing
    found = await etcd.get(key)
    assert found is not None
    assert (found.value, found.version) == (b"step 2", 2), "applied more than once"
    assert result.succeeded
    assert result.revision == found.mod_revision


async def test_a_witness_settles_a_write_that_never_arrived(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd, etcd_prefix: str
) -> None:
    key, guard = etcd_prefix + "journal", etcd_prefix + "cancel"
    revision = await behind_proxy.put(key, b"step 1")

    async def lose_the_request() -> None:
        proxy.freeze()
        await asyncio.sleep(0.2)
        await proxy.cut()
        await proxy.restore()

    losing = asyncio.create_task(lose_the_request())
    await asyncio.sleep(0)
    result = await behind_proxy.txn(
        compare=[mod_is(key, revision)], success=[put(key, b"step 2")], witness=key
    )
    await losing
    assert result.succeeded
    found = await etcd.get(key)
    assert found is not None
    assert (found.value, found.version, found.mod_revision) == (b"step 2", 2, result.revision)

    # The same, when another comparison fails by then: nothing was applied, and that is the answer.
    await etcd.put(guard, b"")
    losing = asyncio.create_task(lose_the_request())
    await asyncio.sleep(0)
    refused = await behind_proxy.txn(
        compare=[mod_is(key, found.mod_revision), absent(guard)],
        success=[put(key, b"step 3")],
        failure=[get(guard)],
        witness=key,
    )
    await losing
    assert not refused.succeeded
    assert refused.responses[0].kv is not None
    assert refused.responses[0].kv.key == guard


async def test_a_witness_that_somebody_else_changed_leaves_the_outcome_unknown(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd, etcd_prefix: str
) -> None:
    key = etcd_prefix + "journal"
    revision = await behind_proxy.put(key, b"step 1")
    proxy.freeze()
    writing = asyncio.create_task(
        behind_proxy.txn(compare=[mod_is(key, revision)], success=[put(key, b"step 2")], witness=key)
    )
    await asyncio.sleep(0.3)
    await etcd.put(key, b"another's")
    await proxy.cut()
    await proxy.restore()
    with pytest.raises(OutcomeUnknown, match="somebody else"):
        await writing


async def test_closing_the_client_ends_calls_that_wait(etcd_server: EtcdServer) -> None:
    (port,) = free_ports(1)
    async with Etcd.open(etcd_server.config(endpoints=(f"127.0.0.1:{port}",))) as etcd:
        waiting = asyncio.create_task(etcd.get("/k"))
        await asyncio.sleep(0.05)
    with pytest.raises(Unavailable, match="closed"):
        await waiting

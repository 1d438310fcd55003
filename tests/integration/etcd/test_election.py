"""One leader at a time, and writes that only it can make. All in one process."""

import asyncio
import threading
import time
from functools import partial

import pytest
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.election import Election, LeaderInfo, Leadership, observe
from remuda_core.etcd.errors import NotLeader, OutcomeUnknown
from remuda_core.etcd.ops import absent, get, mod_is, put
from remuda_core.testing.etcd import EtcdServer
from remuda_core.testing.premise import PremiseLost, set_up_again
from remuda_core.testing.tcp_proxy import TcpProxy
from remuda_core.testing.waiting import wait_for


async def lost(leadership: Leadership, timeout: float = 10) -> None:
    async with asyncio.timeout(timeout):
        await leadership.lost.wait()


async def test_the_second_candidate_leads_when_the_first_resigns_and_epochs_rise(
    etcd: Etcd, etcd_prefix: str
) -> None:
    key = etcd_prefix + "leader"
    first, second = Election(etcd, key, b"one", 10), Election(etcd, key, b"two", 10)
    leading = await first.campaign()
    waiting = asyncio.create_task(second.campaign())
    found = await etcd.get(key)
    assert found is not None
    assert (found.value, found.create_revision) == (b"one", leading.epoch)
    was_safe = leading.safe
    assert was_safe
    assert leading.cluster_id == (await etcd.status()).cluster_id
    assert not (await asyncio.wait({waiting}, timeout=0.2))[0]
    before = time.monotonic()
    await first.resign()
    successor = await asyncio.wait_for(waiting, 60)
    assert time.monotonic() - before < 6, "a resignation must not cost a TTL"
    assert successor.epoch > leading.epoch
    assert leading.lost_reason == "resigned"
    assert not leading.safe
    assert leading.valid_until == 0
    with pytest.raises(NotLeader, match="resigned"):
        await leading.txn(success=[put(etcd_prefix + "k", b"")])
    await second.resign()


async def test_no_lease_and_no_thread_is_left_by_winners_waiters_and_quitters(
    own_etcd: Etcd, etcd_prefix: str
) -> None:
    key = etcd_prefix + "leader"
    async with Election(own_etcd, key, b"leader", 10) as election:
        await election.campaign()
        waiting = [asyncio.create_task(Election(own_etcd, key, b"w", 10).campaign()) for _ in range(5)]

        async def all_wait() -> bool:
            return len(await own_etcd.leases()) == 6

        await wait_for(all_wait, timeout=60)
        # Attempts that fail take no new lease: the key changes under the waiters, and they try again.
        found = await own_etcd.get(key)
        assert found is not None
        for _ in range(5):
            await own_etcd.put(key, b"touched", lease=found.lease)
        assert len(await own_etcd.leases()) == 6
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert len(await own_etcd.leases()) == 1
    assert await own_etcd.leases() == frozenset()
    assert await own_etcd.get(key) is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease-")]


async def test_a_fenced_transaction_gives_the_callers_own_result(etcd: Etcd, etcd_prefix: str) -> None:
    key = etcd_prefix + "k"
    async with Election(etcd, etcd_prefix + "leader", b"me", 10) as election:
        leadership = await election.campaign()
        done = await leadership.txn(compare=[absent(key)], success=[put(key, b"1"), get(key)])
        assert done.succeeded
        assert done.responses[1].kv is not None
        refused = await leadership.txn(compare=[absent(key)], success=[put(key, b"2")], failure=[get(key)])
        assert not refused.succeeded
        assert [one.kv.value for one in refused.responses if one.kv] == [b"1"]
        assert leadership.safe


async def test_a_leader_whose_key_was_deleted_by_force_notices_at_once(etcd: Etcd, etcd_prefix: str) -> None:
    key = etcd_prefix + "leader"
    async with Election(etcd, key, b"me", 60) as election:
        leadership = await election.campaign()
        await etcd.delete(key)
        await lost(leadership)
        assert leadership.lost_reason == "the leader key was deleted"
        # The same candidate may stand again: another term, another epoch.
        again = await election.campaign()
        assert again.epoch > leadership.epoch


async def test_a_leader_key_overwritten_by_hand_ends_the_term_and_blocks_nobody(
    etcd: Etcd, etcd_prefix: str
) -> None:
    """A put without the lease detaches it: such a key would never expire."""
    key = etcd_prefix + "leader"
    async with Election(etcd, key, b"me", 60) as election, Election(etcd, key, b"next", 60) as other:
        leadership = await election.campaign()
        await etcd.put(key, b"by hand")
        await lost(leadership)
        assert leadership.lost_reason == "the leader key was overwritten"
        successor = await asyncio.wait_for(other.campaign(), 60)
        assert successor.epoch > leadership.epoch


async def test_a_stale_leader_that_has_noticed_nothing_is_refused_by_etcd(
    etcd: Etcd, etcd_prefix: str, behind_proxy: Etcd, proxy: TcpProxy
) -> None:
    key = etcd_prefix + "leader"
    async with Election(behind_proxy, key, b"old", 60) as election:
        old = await election.campaign()
        # Deaf: the watch of the leader key does not get through, and the lease is good for a minute.
        await proxy.cut()
        await etcd.delete(key)
        async with Election(etcd, key, b"new", 60) as other:
            new = await other.campaign()
            assert old.safe
            assert not old.lost.is_set()
            old._etcd = etcd
            with pytest.raises(NotLeader, match=f"epoch {new.epoch} has begun") as caught:
                await old.txn(success=[put(etcd_prefix + "k", b"stale")])
            assert not caught.value.outcome_unknown
            assert old.lost.is_set()
            assert await etcd.get(etcd_prefix + "k") is None
            await new.txn(success=[put(etcd_prefix + "k", b"fresh")])
        await proxy.restore()


async def test_an_unknown_outcome_is_checked_against_the_leader_key(
    etcd: Etcd, etcd_prefix: str, behind_proxy: Etcd, proxy: TcpProxy
) -> None:
    key = etcd_prefix + "leader"
    async with Election(behind_proxy, key, b"me", 60) as election:
        leadership = await election.campaign()
        # Still the leader: it is for the caller to re-read.
        proxy.freeze()
        writing = asyncio.create_task(leadership.txn(success=[put(etcd_prefix + "a", b"")], timeout=0.3))
        await asyncio.wait({writing}, timeout=0.4)
        await proxy.cut()
        await proxy.restore()
        with pytest.raises(OutcomeUnknown):
            await writing
        assert not leadership.lost.is_set()
        # Not any more.
        await behind_proxy.get(key)
        proxy.freeze()
        writing = asyncio.create_task(leadership.txn(success=[put(etcd_prefix + "b", b"")], timeout=0.3))
        await asyncio.sleep(0.05)
        await etcd.delete(key)
        await asyncio.wait({writing}, timeout=0.4)
        await proxy.cut()
        await proxy.restore()
        with pytest.raises(NotLeader) as caught:
            await writing
        assert caught.value.outcome_unknown


async def test_a_witness_settles_a_fenced_write_whose_answer_was_lost(
    etcd: Etcd, etcd_prefix: str, behind_proxy: Etcd, proxy: TcpProxy
) -> None:
    key, journal = etcd_prefix + "leader", etcd_prefix + "journal"
    async with Election(behind_proxy, key, b"me", 60) as election:
        leadership = await election.campaign()
        revision = await etcd.put(journal, b"step 1")
        proxy.freeze_answers()
        writing = asyncio.create_task(
            leadership.txn(compare=[mod_is(journal, revision)], success=[put(journal, b"2")], witness=journal)
        )

        async def arrived() -> bool:
            found = await etcd.get(journal)
            return found is not None and found.value == b"2"

        await wait_for(arrived, timeout=60)
        await proxy.cut()
        await proxy.restore()
        result = await asyncio.wait_for(writing, 60)
        found = await etcd.get(journal)
        assert found is not None
        assert (result.succeeded, result.revision, found.version) == (True, found.mod_revision, 2)


async def test_a_lost_answer_to_the_winning_transaction_does_not_lose_the_election(
    etcd: Etcd, etcd_prefix: str, behind_proxy: Etcd, proxy: TcpProxy
) -> None:
    key = etcd_prefix + "leader"
    before = await etcd.leases()
    async with Election(behind_proxy, key, b"me", 30) as election:
        async with Election(etcd, key, b"other", 30) as other:
            await other.campaign()
            campaigning = asyncio.create_task(election.campaign())

            async def both_stand() -> bool:
                return len(await etcd.leases() - before) == 2

            await wait_for(both_stand, timeout=60)
        # Vacant now. Answers are held back until the key is taken.
        proxy.freeze_answers()
        await asyncio.sleep(0.3)
        await proxy.cut()
        await proxy.restore()
        leadership = await asyncio.wait_for(campaigning, 60)
        found = await etcd.get(key)
        assert found is not None
        assert (found.create_revision, found.version) == (leadership.epoch, 1)
        assert len(await etcd.leases() - before) == 1


@pytest.mark.parametrize("kind", ["waiting", "computing"])
async def test_a_blocked_event_loop_does_not_lose_the_lease(etcd: Etcd, etcd_prefix: str, kind: str) -> None:
    # Blocked for twice the TTL, which is not shorter because a crowded machine stops threads too.
    ttl, blocked = 3, 7.0
    async with Election(etcd, etcd_prefix + "leader", b"me", ttl) as election:
        leadership = await election.campaign()
        until = time.monotonic() + blocked
        if kind == "waiting":
            time.sleep(blocked)  # noqa: ASYNC251 - blocking the loop is the point
        else:
            while time.monotonic() < until:
                sum(range(1000))
        assert leadership.safe
        result = await leadership.txn(success=[put(etcd_prefix + "k", b"")])
        assert result.succeeded
        assert not leadership.lost.is_set()


@set_up_again
async def test_a_leader_cut_off_from_etcd_gives_up_within_its_ttl_and_before_the_next_one_leads(
    etcd: Etcd, etcd_prefix: str, behind_proxy: Etcd, proxy: TcpProxy
) -> None:
    key = etcd_prefix + "leader"
    async with Election(behind_proxy, key, b"old", 2) as election, Election(etcd, key, b"new", 2) as other:
        old = await election.campaign()
        waiting = asyncio.create_task(other.campaign())
        await proxy.cut()
        cut_at = time.monotonic()
        await lost(old)
        took, too_late = time.monotonic() - cut_at, waiting.done()
        assert not old.safe
        new = await asyncio.wait_for(waiting, 60)
        assert new.epoch > old.epoch
        took_in_all = time.monotonic() - cut_at
        await proxy.restore()
        if took >= 2.5 or took_in_all >= 6:
            raise PremiseLost(f"it took {took:.1f} and {took_in_all:.1f} s, if only for want of processors")
        assert not too_late, "two leaders at once"
        with pytest.raises(NotLeader, match="lease was lost"):
            await old.txn(success=[put(etcd_prefix + "k", b"")])


async def test_a_leader_survives_a_restart_of_etcd_shorter_than_its_ttl(
    own_server: EtcdServer, own_etcd: Etcd
) -> None:
    async with Election(own_etcd, "/leader", b"me", 5) as election:
        leadership = await election.campaign()
        own_server.restart()
        kept_after = time.monotonic() + 4.5
        await wait_for(lambda: leadership.valid_until > kept_after, timeout=60)
        result = await leadership.txn(success=[put("/k", b"")])
        assert result.succeeded


async def test_candidates_find_a_leader_although_etcd_starts_last(
    own_server: EtcdServer, own_etcd: Etcd
) -> None:
    own_server.kill()
    async with (
        Etcd.open(own_server.config(timeout_seconds=0.5)) as etcd,
        Election(etcd, "/leader", b"me", 5) as election,
    ):
        campaigning = asyncio.create_task(election.campaign())
        assert not (await asyncio.wait({campaigning}, timeout=0.8))[0]
        own_server.start()
        assert (await asyncio.wait_for(campaigning, 60)).safe


async def test_everybody_can_follow_who_leads(etcd: Etcd, etcd_prefix: str) -> None:
    key = etcd_prefix + "leader"
    seen: list[LeaderInfo | None] = []

    async def follow() -> None:
        async for info in observe(etcd, key):
            seen.append(info)  # noqa: PERF401 - read while it grows

    def leads(name: bytes) -> bool:
        return seen[-1] is not None and seen[-1].candidate == name

    following = asyncio.create_task(follow())
    await wait_for(lambda: seen, timeout=60)
    epochs = []
    for name in (b"one", b"two"):
        async with Election(etcd, key, name, 10) as election:
            epochs.append((await election.campaign()).epoch)
            await wait_for(partial(leads, name), timeout=60)
        await wait_for(lambda: seen[-1] is None, timeout=60)
    following.cancel()
    assert seen == [
        None,
        LeaderInfo(epoch=epochs[0], candidate=b"one"),
        None,
        LeaderInfo(epoch=epochs[1], candidate=b"two"),
        None,
    ]


async def test_following_goes_on_after_a_compaction(
    etcd: Etcd, etcd_prefix: str, behind_proxy: Etcd, proxy: TcpProxy
) -> None:
    key = etcd_prefix + "leader"
    leaders = observe(behind_proxy, key)
    assert await anext(leaders) is None
    async with Election(etcd, key, b"one", 10) as election:
        await proxy.cut()
        leadership = await election.campaign()
        await etcd.compact(await etcd.put(etcd_prefix + "k", b""))
        await proxy.restore()
        async with asyncio.timeout(60):
            assert await anext(leaders) == LeaderInfo(epoch=leadership.epoch, candidate=b"one")

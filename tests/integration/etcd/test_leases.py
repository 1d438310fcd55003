"""Leases: granted once, kept alive by a thread of their own, given back, and none leaked."""

import asyncio
import threading
import time

import pytest
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import LeaseNotFound
from remuda_core.etcd.lease import LeaseKeeper
from remuda_core.testing.etcd import EtcdServer
from remuda_core.testing.tcp_proxy import TcpProxy
from remuda_core.testing.waiting import wait_for


class Losses:
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.threads: list[str] = []

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.threads.append(threading.current_thread().name)


async def keep(etcd: Etcd, ttl_seconds: int, losses: Losses) -> LeaseKeeper:
    granted_at = time.monotonic()
    lease_id, granted = await etcd.grant_lease(ttl_seconds)
    keeper = LeaseKeeper(
        etcd.config,
        lease_id=lease_id,
        ttl_seconds=granted,
        granted_at=granted_at,
        on_lost=losses,
        token=lambda: None,
    )
    keeper.start()
    return keeper


async def end(keeper: LeaseKeeper) -> None:
    keeper.stop()
    assert await asyncio.to_thread(keeper.join, 5), "the thread of the lease goes on"


async def test_a_lease_deletes_its_keys_when_it_is_revoked(etcd: Etcd, etcd_prefix: str) -> None:
    lease_id, ttl = await etcd.grant_lease(600)
    assert ttl == 600
    await etcd.put(etcd_prefix + "k", b"", lease=lease_id)
    found = await etcd.get(etcd_prefix + "k")
    assert found is not None
    assert found.lease == lease_id
    assert 590 < await etcd.lease_ttl(lease_id) <= 600
    await etcd.revoke_lease(lease_id)
    assert await etcd.get(etcd_prefix + "k") is None
    assert await etcd.lease_ttl(lease_id) == -1
    # Once more is no error: the answer to the first may have been lost.
    await etcd.revoke_lease(lease_id)


async def test_a_key_cannot_be_put_under_a_lease_that_is_gone(etcd: Etcd, etcd_prefix: str) -> None:
    with pytest.raises(LeaseNotFound):
        await etcd.put(etcd_prefix + "k", b"", lease=12345)


async def test_a_grant_whose_answer_was_lost_is_repeated_and_leaks_no_lease(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd
) -> None:
    await behind_proxy.get("/warm")
    before = await etcd.leases()
    proxy.freeze_answers()
    granting = asyncio.create_task(behind_proxy.grant_lease(600))

    async def arrived() -> bool:
        return await etcd.leases() > before

    await wait_for(arrived, timeout=60)
    await proxy.cut()
    await proxy.restore()
    lease_id, _ = await granting
    assert await etcd.leases() - before == {lease_id}
    await etcd.revoke_lease(lease_id)


async def test_a_kept_lease_outlives_its_ttl_while_the_event_loop_is_blocked(
    etcd: Etcd, etcd_prefix: str
) -> None:
    losses = Losses()
    keeper = await keep(etcd, 2, losses)
    await etcd.put(etcd_prefix + "k", b"", lease=keeper.lease_id)
    before = keeper.valid_until
    time.sleep(keeper.ttl_seconds * 3)  # noqa: ASYNC251 - blocking the loop is the point
    assert keeper.valid_until > before + keeper.ttl_seconds
    assert await etcd.get(etcd_prefix + "k") is not None
    assert losses.reasons == []
    await end(keeper)
    await etcd.revoke_lease(keeper.lease_id)


async def test_validity_counts_from_before_the_keep_alive_was_sent(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd
) -> None:
    """Whatever the network's delay: the lease must never end in etcd before the keeper believes it does."""
    keeper = await keep(behind_proxy, 3, Losses())
    first = keeper.valid_until
    await wait_for(lambda: keeper.valid_until > first, timeout=60)
    second = keeper.valid_until
    proxy.freeze_answers()
    frozen_at = time.monotonic()
    await wait_for(lambda: proxy.last_request_at > frozen_at, timeout=60)
    arrived_at = proxy.last_request_at
    await asyncio.sleep(0.4)
    await proxy.restore()
    await wait_for(lambda: keeper.valid_until > second, timeout=60)
    assert keeper.valid_until <= arrived_at + keeper.ttl_seconds
    await end(keeper)
    await etcd.revoke_lease(keeper.lease_id)


async def test_a_keeper_that_hears_nothing_gives_up_although_the_lease_still_lives(
    proxy: TcpProxy, behind_proxy: Etcd, etcd: Etcd
) -> None:
    losses = Losses()
    keeper = await keep(behind_proxy, 2, losses)
    await wait_for(lambda: proxy.connections >= 2, timeout=60)
    proxy.freeze_answers()
    await wait_for(lambda: losses.reasons, timeout=60)
    assert time.monotonic() >= keeper.valid_until
    assert keeper.lost
    assert "no keep-alive in 2 s: DEADLINE_EXCEEDED" in losses.reasons[0]
    # Its requests arrived all the time.
    assert await etcd.lease_ttl(keeper.lease_id) > 0
    await end(keeper)
    await etcd.revoke_lease(keeper.lease_id)


async def test_a_revoked_lease_is_noticed_at_the_next_keep_alive(etcd: Etcd) -> None:
    losses = Losses()
    keeper = await keep(etcd, 1, losses)
    await etcd.revoke_lease(keeper.lease_id)
    await wait_for(lambda: losses.reasons, timeout=60)
    assert losses.reasons == ["etcd says that it is gone"]
    assert losses.threads == [f"lease-{keeper.lease_id:x}"]
    await end(keeper)


async def test_a_restart_of_etcd_shorter_than_the_ttl_does_not_lose_the_lease(
    own_server: EtcdServer, own_etcd: Etcd
) -> None:
    losses = Losses()
    keeper = await keep(own_etcd, 5, losses)
    await own_etcd.put("/k", b"", lease=keeper.lease_id)
    own_server.restart()
    kept_after = time.monotonic() + keeper.ttl_seconds
    await wait_for(lambda: keeper.valid_until > kept_after, timeout=60)
    assert losses.reasons == []
    assert await own_etcd.get("/k") is not None
    await end(keeper)


async def test_without_etcd_the_lease_is_lost_when_its_ttl_is_over_and_not_before(
    own_server: EtcdServer, own_etcd: Etcd
) -> None:
    losses = Losses()
    keeper = await keep(own_etcd, 1, losses)
    own_server.kill()
    await wait_for(lambda: losses.reasons, timeout=60)
    late = time.monotonic() - keeper.valid_until
    assert 0 <= late < 5
    await end(keeper)


async def test_a_stopped_keeper_ends_its_thread_and_calls_nobody(etcd: Etcd) -> None:
    losses = Losses()
    keeper = await keep(etcd, 2, losses)
    await end(keeper)
    await etcd.revoke_lease(keeper.lease_id)
    assert losses.reasons == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease-")]


async def test_etcd_raises_a_ttl_below_its_floor_and_says_so(own_server: EtcdServer, own_etcd: Etcd) -> None:
    own_server.kill()
    own_server.election_timeout_ms = 2000
    own_server.start()
    _, ttl = await own_etcd.grant_lease(1)
    assert ttl == 3

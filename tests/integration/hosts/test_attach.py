"""Hosts attach to whoever leads, prove who they are, and are missed when they fall silent."""

from collections.abc import Awaitable
from dataclasses import replace

import grpc
import pytest
from remuda.compute.v1.host_pb2 import Host
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId
from remuda_core.rpc.status import from_rpc_error
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.hosts.keeper import LIVENESS_SECONDS

from tests.integration.hosts.conftest import (
    DUPLICATE_SECONDS,
    UNREACHABLE_SECONDS,
    WAIT_SECONDS,
    Hosts,
    Scheduler,
)


async def refusal(call: Awaitable[object]) -> RemudaError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_a_host_with_its_token_is_up_and_its_inventory_is_stored(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    agent = await hosts.agent("alpha")
    status = await hosts.status(agent.host)
    assert (status.state, status.enrolled) == (Host.STATE_UP, True)
    assert [pool.name for pool in status.inventory.pools] == ["local"]
    # Free space changes all the time: it stays in the leader's memory.
    assert status.inventory.pools[0].available_bytes == 0
    (facts,) = (await scheduler.term()).placer.hosts()
    assert facts.up
    assert facts.pools["local"].available_bytes > 0


@pytest.mark.parametrize("given", ["", "wrong", "of another host"])
async def test_a_host_without_its_own_token_is_refused_and_stays_enrolling(hosts: Hosts, given: str) -> None:
    scheduler = await hosts.scheduler()
    host, _ = await hosts.enrol("alpha")
    _, other = await hosts.enrol("beta")
    token = other if given == "of another host" else given
    async with hosts.peer(scheduler, host) as peer:
        error = await refusal(peer.hello("alpha", token=token))
    assert error.reason is Reason.ENROLMENT_REFUSED
    assert await hosts.etcd.get(hosts.keys.host_status(host)) is None


async def test_a_token_is_good_for_one_enrolment(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    host, token = await hosts.enrol("alpha")
    async with hosts.peer(scheduler, host) as peer:
        await peer.hello("alpha", token=token)
    # From now on the certificate speaks for it.
    async with hosts.peer(scheduler, host) as peer:
        await peer.hello("alpha")
    await hosts.delete_host(host)
    await wait_for(lambda: scheduler.leader.term().store.host(host) is None, timeout=WAIT_SECONDS)
    await hosts.enrol("alpha", host=host)
    async with hosts.peer(scheduler, host) as peer:
        error = await refusal(peer.hello("alpha", token=token))
    assert error.reason is Reason.ENROLMENT_REFUSED


async def test_nobody_attaches_as_another_host_or_under_another_name(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    host, token = await hosts.enrol("alpha")
    other, _ = await hosts.enrol("beta")
    async with hosts.peer(scheduler, other) as peer:
        error = await refusal(replace(peer, host=host).hello("alpha", token=token))
    assert error.reason is Reason.PERMISSION_DENIED
    async with hosts.peer(scheduler, host) as peer:
        error = await refusal(peer.hello("gamma", token=token))
    assert error.reason is Reason.ENROLMENT_REFUSED


async def test_a_host_that_is_not_registered_is_refused(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    host = HostId("6b0ff1d4-4f6b-4b41-9a7c-0b54a1f4d8f7")
    async with hosts.peer(scheduler, host) as peer:
        error = await refusal(peer.hello("alpha", token="any"))
    assert error.reason is Reason.HOST_NOT_FOUND


async def test_a_second_machine_with_the_same_uuid_is_refused_and_leaves_no_trace(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    host, token = await hosts.enrol("alpha")
    async with hosts.peer(scheduler, host) as first, hosts.peer(scheduler, host) as second:
        await first.hello("alpha", token=token)
        before = await hosts.revision()
        await first.beat(1)
        error = await refusal(second.hello("alpha", boot="boot-2"))
        assert error.reason is Reason.DUPLICATE_HOST
        assert await hosts.revision() == before
        assert (await hosts.status(host)).agent_endpoint == "127.0.0.1:1"
        await first.beat(2)  # whoever came first stays


async def test_a_host_that_rebooted_is_taken_once_its_old_stream_is_silent(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    host, token = await hosts.enrol("alpha")
    async with hosts.peer(scheduler, host) as first, hosts.peer(scheduler, host) as second:
        await first.hello("alpha", token=token)
        registry = (await scheduler.term()).registry
        await wait_for(lambda: registry.silent_seconds(host) > DUPLICATE_SECONDS, timeout=WAIT_SECONDS)
        await second.hello("alpha", boot="boot-2")
        assert (await hosts.status(host)).boot_id == "boot-2"


async def test_a_new_stream_of_the_same_boot_ends_the_old_one(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    host, token = await hosts.enrol("alpha")
    async with hosts.peer(scheduler, host) as first, hosts.peer(scheduler, host) as second:
        await first.hello("alpha", token=token)
        await second.hello("alpha")
        error = await refusal(first.beat(1))
        assert error.reason is Reason.SHUTTING_DOWN
        assert (await second.beat(2)).ack.seq == 2
        assert (await scheduler.term()).registry.attached(host)


async def test_the_first_message_must_be_the_hello(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    host, _ = await hosts.enrol("alpha")
    async with hosts.peer(scheduler, host) as peer:
        error = await refusal(peer.beat(1))
    assert error.reason is Reason.INVALID_ARGUMENT


async def test_a_standby_names_the_leader_and_the_agent_goes_there(hosts: Hosts) -> None:
    leader = await hosts.scheduler()
    standby = await hosts.scheduler(run=False)
    standby.run()
    host, _ = await hosts.enrol("alpha")

    async def redirected() -> RemudaError | None:
        async with hosts.peer(standby, host) as peer:
            error = await refusal(peer.hello("alpha"))
        return error if error.reason is Reason.NOT_LEADER else None

    error = await wait_for(redirected, timeout=WAIT_SECONDS)
    assert error.metadata["endpoint"] == leader.endpoint
    assert int(error.metadata["epoch"]) == (await leader.term()).leadership.epoch
    agent = await hosts.agent("beta", schedulers=(standby.endpoint, leader.endpoint))
    assert (await leader.term()).registry.attached(agent.host)


async def test_without_a_leader_the_refusal_says_so(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler(run=False)
    host, _ = await hosts.enrol("alpha")
    async with hosts.peer(scheduler, host) as peer:
        error = await refusal(peer.hello("alpha"))
    assert error.reason is Reason.NO_LEADER


async def test_agents_follow_to_the_next_leader(hosts: Hosts) -> None:
    first, second = await hosts.scheduler(), await hosts.scheduler(run=False)
    second.run()
    agent = await hosts.agent("alpha")
    await first.resign()
    term = await second.term()
    await wait_for(lambda: term.registry.attached(agent.host), timeout=WAIT_SECONDS)
    assert term.leadership.epoch == (await hosts.etcd.range_key(hosts.keys.leader)).kvs[0].create_revision


async def test_a_silent_host_is_unreachable_and_up_again_when_it_comes_back(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    agent = await hosts.agent("alpha")
    await agent.end()
    await hosts.until_state(agent.host, "UNREACHABLE")
    (facts,) = (await scheduler.term()).placer.hosts()
    assert not facts.up
    await until_shown(scheduler, "alpha", "unreachable")
    agent.start()
    await hosts.until_state(agent.host, "UP")
    await until_shown(scheduler, "alpha", "up")


async def test_a_host_that_falls_silent_and_speaks_again_on_one_stream_is_up_again(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    host, token = await hosts.enrol("alpha")
    async with hosts.peer(scheduler, host) as peer:
        await peer.hello("alpha", token=token)
        await hosts.until_state(host, "UNREACHABLE")
        assert (await scheduler.term()).registry.attached(host)
        await peer.beat(1)
        await hosts.until_state(host, "UP")


async def until_shown(scheduler: Scheduler, host: str, state: str) -> None:
    """Gauges show what the watches have brought, a moment after etcd has it."""
    labels = {"host": host, "state": state}
    await wait_for(lambda: scheduler.scrape().value("remuda_host_state", labels) == 1, timeout=WAIT_SECONDS)


async def test_a_new_leader_takes_a_silent_host_as_unknown_and_only_later_as_unreachable(
    hosts: Hosts,
) -> None:
    first = await hosts.scheduler()
    agent = await hosts.agent("alpha")
    second = await hosts.scheduler(run=False)
    await agent.end()
    await first.resign()
    second.run()
    keeper = (await second.term()).keeper
    assert keeper.state(agent.host) == Host.STATE_UNKNOWN
    assert (await hosts.status(agent.host)).state == Host.STATE_UP  # UNKNOWN is never stored
    await hosts.until_state(agent.host, "UNREACHABLE")


async def test_a_steady_cluster_writes_nothing_to_etcd(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    agents = [await hosts.agent(f"host-{number}") for number in range(8)]
    sessions = (await scheduler.term()).registry.sessions()
    before = await hosts.revision()
    beats = {host: session.last_seq for host, session in sessions.items()}

    def all_beat_often() -> bool:
        return all(sessions[agent.host].last_seq >= beats[agent.host] + 25 for agent in agents)

    await wait_for(
        all_beat_often, timeout=60, last_status=lambda: [one.last_seq for one in sessions.values()]
    )
    assert await hosts.revision() == before


async def test_a_deleted_host_is_not_listened_to_and_its_status_does_not_come_back(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    agent = await hosts.agent("alpha")
    term = await scheduler.term()
    await hosts.delete_host(agent.host)
    await wait_for(lambda: not term.registry.attached(agent.host), timeout=WAIT_SECONDS)
    # The agent asks again and is refused; silence is noticed all the while.
    await wait_for(lambda: not list(term.placer.hosts()), timeout=WAIT_SECONDS)
    limit = UNREACHABLE_SECONDS + LIVENESS_SECONDS
    await wait_for(lambda: term.registry.silent_seconds(agent.host) > limit, timeout=WAIT_SECONDS)
    assert await hosts.etcd.get(hosts.keys.host_status(agent.host)) is None

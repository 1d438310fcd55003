"""Processes are killed with SIGKILL while work goes on; clients see it through."""

import time

from remuda.compute.v1 import instance_pb2
from remuda_core.errors import Reason
from remuda_core.testing.premise import PremiseLost, set_up_again
from remuda_core.testing.waiting import wait_for

from tests.integration.mesh.conftest import PROJECT, Cluster, Instance, Watched, refusal
from tests.integration.mesh.processes import TTL_SECONDS

RUNNING = Instance.STATE_RUNNING
SLOW_MIB_S = 1
"""A guest of 64 MiB takes a minute: longer than an election, and than what is done to a move meanwhile."""


async def moved_once(cluster: Cluster, watched: Watched, made: instance_pb2.Instance) -> None:
    """The client's stream ended with DONE, and exactly one copy runs, at the target."""
    ended = await watched.end()
    assert not ended.HasField("error"), ended.error.message
    found = await cluster.get(made.name)
    assert (found.state, found.host, found.epoch) == (RUNNING, cluster.host("beta"), made.epoch + 1)
    domains = cluster.mesh.domains()
    assert (domains["alpha"], domains["beta"]) == (set(), {made.uid})
    assert watched.percents == sorted(watched.percents)


@set_up_again
async def test_a_leader_killed_while_idle_is_followed_within_about_its_ttl(cluster: Cluster) -> None:
    first = await cluster.leader()
    cluster.mesh.processes[first].kill()
    began = time.monotonic()
    await cluster.until_leader(other_than=first)
    took = time.monotonic() - began
    cluster.mesh.start(first)
    await cluster.until_up()
    if took >= TTL_SECONDS + 2.0:
        raise PremiseLost(f"it took {took:.1f} s, if only for want of processors")
    await cluster.launch("after")


async def test_a_leader_killed_during_a_migration_is_followed_and_the_client_sees_it_end(
    cluster: Cluster,
) -> None:
    made = await cluster.launch("web", host="alpha", pool="shared")
    watched = cluster.watch(await cluster.migrate(made.name, "beta", bandwidth_mib_s=SLOW_MIB_S))
    await watched.until(3)
    first = await cluster.leader()
    cluster.mesh.processes[first].kill()
    await cluster.until_leader(other_than=first)
    before = len(watched.migrations)
    await watched.until(before + 2)  # the next leader has joined the job
    await cluster.mesh.hasten("alpha", made.uid)
    await moved_once(cluster, watched, made)
    record = await cluster.migration(watched.seen[-1])
    assert [one.type for one in record.timeline].count("JOB_STARTED") == 1


async def test_a_source_agent_killed_during_a_migration_goes_on_with_it(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha", pool="shared")
    watched = cluster.watch(await cluster.migrate(made.name, "beta", bandwidth_mib_s=SLOW_MIB_S))
    await watched.until(3)
    agent = cluster.mesh.processes["alpha"]
    agent.kill()
    agent.start()
    before = len(watched.migrations)
    await watched.until(before + 2)
    await cluster.mesh.hasten("alpha", made.uid)
    await moved_once(cluster, watched, made)


async def test_a_source_agent_that_is_away_until_the_move_is_over_still_cleans_up(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha", pool="shared")
    watched = cluster.watch(await cluster.migrate(made.name, "beta", bandwidth_mib_s=SLOW_MIB_S))
    await watched.until(2)
    agent = cluster.mesh.processes["alpha"]
    agent.kill()
    await cluster.mesh.hasten("alpha", made.uid)

    # The hypervisors move the guest among themselves.
    await wait_for(lambda: cluster.mesh.shows("beta", made.uid, paused=False), timeout=60.0)
    agent.start()
    await moved_once(cluster, watched, made)


async def test_a_cancel_asked_without_a_leader_is_done_by_the_next_one(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha", pool="shared")
    watched = cluster.watch(await cluster.migrate(made.name, "beta", bandwidth_mib_s=SLOW_MIB_S))
    await watched.until(2)
    first = await cluster.leader()
    cluster.mesh.processes[first].kill()
    await cluster.cancel(watched.name)
    ended = await watched.end()
    assert ended.HasField("error")
    found = await cluster.get(made.name)
    assert (found.state, found.host) == (RUNNING, cluster.host("alpha"))
    assert cluster.mesh.domains()["beta"] == set()


async def test_without_schedulers_reads_and_admission_work_and_the_rest_says_no_leader(
    cluster: Cluster,
) -> None:
    made = await cluster.launch("web")
    for name in cluster.mesh.schedulers:
        cluster.mesh.processes[name].kill()

    async def nobody() -> bool:
        return await cluster.leader() == ""

    await wait_for(nobody, timeout=60.0)
    assert (await cluster.get(made.name)).state == RUNNING
    listing = instance_pb2.ListInstancesRequest(parent=PROJECT)
    assert len((await cluster.alice.instances.ListInstances(listing)).instances) == 1
    request = instance_pb2.CreateInstanceRequest(
        parent=PROJECT, instance=cluster.instance("later"), validate_only=True
    )
    error = await refusal(cluster.alice.instances.CreateInstance(request))
    assert error.reason is Reason.NO_LEADER
    assert error.retry_after_seconds
    waiting = await cluster.create("later")
    assert not waiting.done
    cluster.mesh.start()
    await cluster.done(waiting)


async def test_a_service_that_is_told_to_stop_hands_over_and_ends_well(cluster: Cluster) -> None:
    first = await cluster.leader()
    assert cluster.mesh.processes[first].stop() == 0
    # It gave the key back: nobody has to wait for the TTL on top of its drain.
    assert await cluster.leader() != first
    await cluster.until_leader(other_than=first)
    for name in ("api", "image-store", "gamma"):
        assert cluster.mesh.processes[name].stop() == 0

"""What the services show of themselves: metrics that change with the work, and health."""

import asyncio
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families
from remuda_core.testing.waiting import wait_for

from tests.integration.mesh.conftest import Cluster
from tests.integration.mesh.processes import GUEST_MIB, HOST_MIB

MIB = 1 << 20
Sample = tuple[str, frozenset[tuple[str, str]]]


async def scrape(cluster: Cluster, service: str) -> dict[Sample, float]:
    """Samples by name and labels."""

    text = await asyncio.to_thread(cluster.mesh.http, service, "/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


async def scrape_with(
    cluster: Cluster, name: str, expected: Mapping[Sample, float | None]
) -> dict[Sample, float]:
    """Once gauges are these (None: gone): they show what the watches have brought, a moment after etcd."""
    seen: dict[Sample, float] = {}

    async def shown() -> bool:
        samples = await scrape(cluster, name)
        seen.clear()
        seen.update(samples)
        return all(seen.get(sample) == value for sample, value in expected.items())

    await wait_for(shown, timeout=60, last_status=lambda: {sample: seen.get(sample) for sample in expected})
    return seen


async def test_the_leader_shows_hosts_instances_and_what_it_did_and_the_standby_shows_none(
    cluster: Cluster,
) -> None:
    leader = await cluster.leader()
    (standby,) = set(cluster.mesh.schedulers) - {leader}
    before = await scrape(cluster, leader)
    await cluster.launch("web", host="alpha")
    gauges: dict[Sample, float | None] = {
        key("remuda_leader"): 1,
        key("remuda_host_state", host="alpha", state="up"): 1,
        key("remuda_host_memory_bytes", host="alpha", kind="total"): HOST_MIB * MIB,
        key("remuda_host_memory_bytes", host="alpha", kind="allocated"): GUEST_MIB * MIB,
        key("remuda_instances", host="alpha", state="running"): 1,
    }
    # Counted once the end is on record, where the client may see it first.
    ended = key("remuda_operations_ended_total", action="CreateInstance", result="done", reason="")
    placed = key("remuda_schedule_seconds_count")
    counts = {counter: before.get(counter, 0) + 1 for counter in (ended, placed)}
    await scrape_with(cluster, leader, gauges | counts)
    idle = await scrape(cluster, standby)
    assert idle[key("remuda_leader")] == 0
    assert not [name for name, _ in idle if name in ("remuda_host_state", "remuda_instances")]


async def test_a_running_migration_has_gauges_that_go_when_it_ends(cluster: Cluster) -> None:
    leader = await cluster.leader()
    made = await cluster.launch("web", host="alpha", pool="shared")
    watched = cluster.watch(await cluster.migrate(made.name, "beta", bandwidth_mib_s=2))
    await watched.until(3)
    during = await scrape(cluster, leader)
    assert during[key("remuda_migration_total_bytes", instance=made.uid, kind="memory")] == GUEST_MIB * MIB
    assert during[key("remuda_migration_remaining_bytes", instance=made.uid, kind="memory")] > 0
    assert during[key("remuda_operations", action="LiveMigrateInstance", state="running")] == 1
    assert during[key("remuda_operation_oldest_seconds")] > 0
    assert (await scrape(cluster, "alpha"))[key("remuda_agent_jobs", step="guest_moved")] == 1
    await cluster.mesh.hasten("alpha", made.uid)
    await watched.end()
    running = key("remuda_operations", action="LiveMigrateInstance", state="running")
    total = key("remuda_migration_total_bytes", instance=made.uid, kind="memory")
    done = key("remuda_migrations_total", kind="live_shared", result="done", reason="")
    expected = {running: None, total: None, done: during.get(done, 0) + 1}
    after = await scrape_with(cluster, leader, expected)
    assert not [labels for name, labels in after if name == "remuda_migration_total_bytes"]
    assert not [labels for name, labels in after if name == "remuda_operations"]
    before = await scrape(cluster, leader)
    assert after[key("remuda_migration_downtime_seconds_count", kind="live_shared")] >= 1
    assert after[key("remuda_migration_duration_seconds_count", kind="live_shared")] >= 1
    assert before[done] == after[done]


async def test_agents_say_whether_they_are_attached(cluster: Cluster) -> None:
    assert (await scrape(cluster, "alpha"))[key("remuda_agent_attached")] == 1
    for name in cluster.mesh.schedulers:
        cluster.mesh.processes[name].kill()

    async def detached() -> bool:
        return (await scrape(cluster, "alpha"))[key("remuda_agent_attached")] == 0

    await wait_for(detached, timeout=60.0)


async def test_every_service_answers_its_health_check(cluster: Cluster) -> None:
    for service in cluster.mesh.processes:
        assert await asyncio.to_thread(cluster.mesh.http, service, "/healthz") == "ok\n"

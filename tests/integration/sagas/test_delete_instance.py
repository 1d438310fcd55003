"""DeleteInstance: gets its way against running operations and dead hosts, and forgets nothing."""

import asyncio

from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.host_pb2 import Host
from remuda.compute.v1.instance_pb2 import DeleteInstanceRequest, LiveMigrateInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.store.v1.host_pb2 import Debt
from remuda_core.testing.hosts import FakeHost, Migrating
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.testing.cluster import PROJECT, Cluster

DONE, CANCELLED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_CANCELLED
WAITING = OperationMetadata.STATE_WAITING_FOR_HOST


async def test_it_takes_over_from_a_launch_in_the_middle_of_a_step(cluster: Cluster) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_: FakeHost, key: StepKey) -> None:
        if key.step == "disks_prepared" and key.direction == StepKey.DIRECTION_DO:
            inside.set()
            await go_on.wait()

    cluster.agents.after = hold
    instance, launch = await cluster.launch()
    await cluster.lead()
    await asyncio.wait_for(inside.wait(), 5)
    delete = await cluster.supersede_with_delete(instance)
    await cluster.done(launch, CANCELLED)
    await cluster.done(delete, DONE)
    await cluster.nothing_is_left()
    assert await cluster.left("instances", "instance_status", "instance_names") == []


async def test_it_begins_only_when_the_operation_before_it_has_ended(cluster: Cluster) -> None:
    instance, launch = await cluster.launch()
    delete = await cluster.supersede_with_delete(instance)
    await cluster.lead()
    await cluster.done(delete, DONE)
    first, second = await cluster.operation(launch), await cluster.operation(delete)
    assert first.metadata.state == CANCELLED
    assert first.metadata.end_time.ToNanoseconds() <= second.metadata.steps[0].start_time.ToNanoseconds()


async def test_on_a_dead_host_it_ends_and_leaves_a_debt_that_keeps_the_address(cluster: Cluster) -> None:
    instance = await cluster.running()
    cluster.agents.hosts[cluster.a].fall_silent()
    operation = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
    term = await cluster.lead()
    await cluster.done(operation, DONE)
    assert await cluster.left("instances", "instance_status") == []
    assert await cluster.left("ports") == ["ports/lan/10.78.0.2"]
    (kv,) = (await cluster.etcd.range_prefix(cluster.keys.debts)).kvs
    debt = Debt.FromString(kv.value)
    assert (debt.instance_id, debt.epoch, debt.step) == (instance, 1, "instance_removed")

    assert await term.engine.pay_debts(cluster.a) == 0, "it is still silent"
    cluster.agents.hosts[cluster.a].come_back()
    assert await term.engine.pay_debts(cluster.a) == 1
    assert await term.engine.pay_debts(cluster.a) == 0
    await cluster.nothing_is_left()


async def test_a_debt_is_paid_in_the_name_of_the_leader_of_that_day(cluster: Cluster) -> None:
    instance = await cluster.running()
    host = cluster.agents.hosts[cluster.a]
    host.fall_silent()
    operation = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
    await cluster.lead()
    await cluster.done(operation, DONE)
    await cluster.close()
    host.come_back()
    term = await cluster.lead()
    assert await term.engine.pay_debts(cluster.a) == 1
    assert host.leader == term.leadership.epoch
    await cluster.nothing_is_left()


async def test_debts_of_attached_hosts_are_collected_without_being_asked(cluster: Cluster) -> None:
    instance = await cluster.running()
    cluster.agents.hosts[cluster.a].fall_silent(calls=50)
    operation = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
    await cluster.lead()
    await cluster.done(operation, DONE)
    cluster.agents.hosts[cluster.a].come_back()
    await cluster.close()
    await cluster.lead()

    async def paid() -> bool:
        return await cluster.left("debts") == []

    await wait_for(paid, timeout=5)
    await cluster.nothing_is_left()


async def test_a_fenced_host_is_not_waited_for(cluster: Cluster) -> None:
    instance = await cluster.running()
    await cluster.set_host_state(cluster.a, Host.STATE_FENCED)
    operation = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert cluster.agents.log == []
    assert len(await cluster.left("debts")) == 1


async def test_it_ends_a_migration_that_waits_for_a_host_and_reaches_both_copies(cluster: Cluster) -> None:
    instance = await cluster.running()
    cluster.agents.hosts[cluster.a].migrating = Migrating.TARGET_SILENT
    request = LiveMigrateInstanceRequest(target_host=f"hosts/{cluster.b}")
    migrate = await cluster.admit("LiveMigrateInstance", instance, request)
    term = await cluster.lead()
    await cluster.in_state(migrate, WAITING)
    delete = await cluster.supersede_with_delete(instance)
    await cluster.done(migrate, CANCELLED)
    await cluster.done(delete, DONE)
    assert cluster.domain(cluster.a, instance) is None
    assert cluster.domain(cluster.b, instance) is not None, "it could not be reached"
    assert ("start_domain", "do") not in [(step, how) for _, step, how in cluster.agents.log]

    cluster.agents.hosts[cluster.b].come_back()
    await term.engine.pay_debts(cluster.b)
    await cluster.nothing_is_left()


async def test_an_instance_that_is_gone_already_is_deleted_with_success(cluster: Cluster) -> None:
    instance, launch = await cluster.launch()
    cluster.room = 0
    await cluster.lead()
    await cluster.ended(launch)
    for _ in range(2):
        operation = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
        await cluster.done(operation, DONE)
    await cluster.nothing_is_open()


async def test_a_name_that_was_given_to_another_instance_stays_with_it(cluster: Cluster) -> None:
    instance = await cluster.running()
    seen = await cluster.etcd.range_prefix(f"{cluster.keys.prefix}instance_names/")
    await cluster.etcd.put(seen.kvs[0].key, b"another instance")
    operation = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert await cluster.left(f"instance_names/{PROJECT}") != []

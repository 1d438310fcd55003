"""DeleteInstance: gets its way against running operations and dead hosts, and forgets nothing."""

import asyncio
import dataclasses
from typing import Any

import pytest
from remuda.agent.v1.agent_pb2 import RunStepRequest
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.host_pb2 import Host
from remuda.compute.v1.instance_pb2 import DeleteInstanceRequest, Instance
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.store.v1.host_pb2 import Debt
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId
from remuda_core.testing.hosts import RUNNING, FakeHost, Migrating
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.engine.saga import Ending
from remuda_scheduler.sagas.registry import SAGAS
from remuda_scheduler.testing.cluster import PROJECT, Cluster, Term

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
    await asyncio.wait_for(inside.wait(), 60)
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
    # Its own round may have been there first.
    await term.engine.pay_debts(cluster.a)
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

    await wait_for(paid, timeout=60)
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


async def _released_source_is_owed(cluster: Cluster, instance: InstanceId) -> Term:
    """The guest is on B; A, which is back, still owes the release of its copy, and that copy runs."""
    source = cluster.agents.hosts[cluster.a]
    source.migrating = Migrating.SOURCE_DIES
    request = LiveMigrateInstanceRequest(target_host=f"hosts/{cluster.b}")
    migrate = await cluster.admit("LiveMigrateInstance", instance, request)
    term = await cluster.lead()
    await cluster.done(migrate, DONE)
    domain = source.domains[instance]
    domain.power, domain.reason = RUNNING, "booted"
    return term


async def _debts(cluster: Cluster) -> list[Debt]:
    return [Debt.FromString(kv.value) for kv in (await cluster.etcd.range_prefix(cluster.keys.debts)).kvs]


async def test_addresses_stay_taken_while_any_host_may_still_run_a_copy(cluster: Cluster) -> None:
    """The guest arrived at B, which fell silent; the delete itself only has to do with A."""
    instance = await cluster.running()
    cluster.agents.hosts[cluster.a].migrating = Migrating.TARGET_SILENT
    request = LiveMigrateInstanceRequest(target_host=f"hosts/{cluster.b}")
    migrate = await cluster.admit("LiveMigrateInstance", instance, request)
    term = await cluster.lead()
    await cluster.in_state(migrate, WAITING)
    delete = await cluster.supersede_with_delete(instance)
    await cluster.done(delete, DONE)
    domain = cluster.domain(cluster.b, instance)
    assert domain is not None
    assert domain.power == RUNNING
    assert await cluster.left("ports") == ["ports/lan/10.78.0.2"]
    other, launch = await cluster.launch(host=f"hosts/{cluster.a}", name="other")
    await cluster.done(launch, DONE)
    assert (await cluster.status(other)).ports[0].address == "10.78.0.3"

    cluster.agents.hosts[cluster.b].come_back()
    await term.engine.pay_debts(cluster.b)
    assert cluster.domain(cluster.b, instance) is None
    assert await cluster.left("ports") == ["ports/lan/10.78.0.3"]
    await cluster.nothing_is_open()


async def test_an_older_debt_that_spares_what_runs_becomes_a_removal(cluster: Cluster) -> None:
    instance = await cluster.running()
    term = await _released_source_is_owed(cluster, instance)
    delete = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
    await cluster.done(delete, DONE)
    (debt,) = await _debts(cluster)
    order = RunStepRequest()
    assert debt.request.Unpack(order)
    assert (debt.host_id, debt.epoch, debt.operation_id) == (cluster.a, 1, delete)
    assert (order.WhichOneof("work"), order.key.epoch, order.remove_instance.pool) == (
        "remove_instance",
        1,
        "local",
    )
    assert await cluster.left("ports") == ["ports/lan/10.78.0.2"]
    cluster.agents.hosts[cluster.a].come_back()
    assert await term.engine.pay_debts(cluster.a) == 1
    await cluster.nothing_is_left()


async def test_the_debt_that_is_paid_last_frees_the_addresses_whichever_it_is(cluster: Cluster) -> None:
    for first, second in ((cluster.a, cluster.b), (cluster.b, cluster.a)):
        instance = await cluster.running()
        term = await _released_source_is_owed(cluster, instance)
        cluster.agents.hosts[cluster.b].fall_silent()
        delete = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
        await cluster.done(delete, DONE)
        assert len(await _debts(cluster)) == 2
        for debt in await _debts(cluster):
            assert [port.address for port in debt.ports] == ["10.78.0.2"]
        cluster.agents.hosts[first].come_back()
        assert await term.engine.pay_debts(first) == 1
        assert await cluster.left("ports") == ["ports/lan/10.78.0.2"]
        cluster.agents.hosts[second].come_back()
        assert await term.engine.pay_debts(second) == 1
        await cluster.nothing_is_left()
        await cluster.close()


async def test_two_hosts_that_pay_at_once_do_not_take_each_other_for_the_last(cluster: Cluster) -> None:
    instance = await cluster.running()
    term = await _released_source_is_owed(cluster, instance)
    cluster.agents.hosts[cluster.b].fall_silent()
    delete = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
    await cluster.done(delete, DONE)
    meeting = asyncio.Barrier(2)

    async def meet(_: FakeHost, __: StepKey) -> None:
        await meeting.wait()

    cluster.agents.after = meet
    for host in (cluster.a, cluster.b):
        cluster.agents.hosts[host].come_back()
    paid = await asyncio.gather(*(term.engine.pay_debts(host) for host in (cluster.a, cluster.b)))
    assert paid == [1, 1]
    await cluster.nothing_is_left()


async def test_what_its_own_order_removes_is_not_owed_any_more(cluster: Cluster) -> None:
    """The finish of a move is owed at the very host where everything is now removed."""
    instance = await cluster.running()

    async def refuse(_: FakeHost, key: StepKey) -> None:
        if key.step == "target_finished":
            raise RemudaError(Reason.HYPERVISOR_ERROR, "cannot connect to libvirt")

    cluster.agents.before = refuse
    request = LiveMigrateInstanceRequest(target_host=f"hosts/{cluster.b}")
    migrate = await cluster.admit("LiveMigrateInstance", instance, request)
    await cluster.lead()
    await cluster.done(migrate, DONE)
    assert [debt.step for debt in await _debts(cluster)] == ["target_finished"]
    delete = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
    await cluster.done(delete, DONE)
    await cluster.nothing_is_left()


async def test_leaders_may_die_while_debts_are_taken_over(cluster: Cluster) -> None:
    for writes in range(1, 20):
        instance = await cluster.running()
        await _released_source_is_owed(cluster, instance)
        await cluster.close()
        delete = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
        over = await cluster.until_death(delete, writes=writes)
        term = await cluster.lead()
        await cluster.done(delete, DONE)
        assert len(await _debts(cluster)) == 1
        assert len(await cluster.left("ports")) == 1
        cluster.agents.hosts[cluster.a].come_back()
        await term.engine.pay_debts(cluster.a)
        await cluster.nothing_is_left()
        await cluster.close()
        if over:
            return
    pytest.fail("it never ended before its leader died")


async def test_debts_that_are_paid_while_it_ends_free_the_addresses_all_the_same(cluster: Cluster) -> None:
    """A pays between the look at what is owed and the last write; then nothing is left to hang them on."""
    instance = await cluster.running()
    term = await _released_source_is_owed(cluster, instance)
    saga = SAGAS["DeleteInstance"]
    looked = 0

    async def succeed(run: Any) -> Ending:
        nonlocal looked
        looked += 1
        ending = await saga.succeed(run)
        if looked == 1:
            cluster.agents.hosts[cluster.a].come_back()
            assert await term.engine.pay_debts(cluster.a) == 1
        return ending

    await cluster.close()
    cluster.sagas = {**SAGAS, saga.action: dataclasses.replace(saga, succeed=succeed)}
    term = await cluster.lead()
    delete = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
    await cluster.done(delete, DONE)
    assert looked == 2
    await cluster.nothing_is_left()


async def test_a_cancel_comes_too_late_when_a_move_has_made_way_for_it(cluster: Cluster) -> None:
    """A copy is destroyed already, and DELETING says so: there is no way back."""
    instance = await cluster.running()
    status = await cluster.status(instance)
    status.state = Instance.STATE_DELETING
    await cluster.etcd.put(cluster.keys.instance_status(instance), status.SerializeToString())
    delete = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
    await cluster.cancel(delete)
    for writes in (1, 2):  # also for a leader who comes later
        assert not await cluster.until_death(delete, writes=writes)
    await cluster.lead()
    record = await cluster.done(delete, DONE)
    assert record.metadata.cancel_outcome == OperationMetadata.CANCEL_OUTCOME_TOO_LATE
    await cluster.nothing_is_left()

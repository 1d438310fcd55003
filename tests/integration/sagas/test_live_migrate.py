"""LiveMigrateInstance: whatever the two hosts do, exactly one copy goes on, and the record says which."""

import asyncio
import dataclasses
from typing import Any

import pytest
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.host_pb2 import Host
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationMetadata, OperationStep
from remuda.store.v1.instance_pb2 import MigrationRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId, OperationId
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import (
    PAUSED,
    RUNNING,
    SHUTOFF,
    FakeHost,
    Migrating,
    Silence,
)
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.sagas.registry import SAGAS
from remuda_scheduler.testing.cluster import Cluster
from remuda_scheduler.testing.scenarios import SCENARIOS

DONE, FAILED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_FAILED
CANCELLED, WAITING = OperationMetadata.STATE_CANCELLED, OperationMetadata.STATE_WAITING_FOR_HOST
LOCAL = next(scenario for scenario in SCENARIOS if scenario.name == "live migrate, local disks")


async def migration_of(cluster: Cluster, instance: InstanceId) -> Migration:
    (kv,) = (await cluster.etcd.range_prefix(f"{cluster.keys.migrations}{instance}/")).kvs
    return MigrationRecord.FromString(kv.value).migration


async def migrate(cluster: Cluster, instance: InstanceId, **fields: Any) -> OperationId:
    return await cluster.admit("LiveMigrateInstance", instance, LiveMigrateInstanceRequest(**fields))


async def test_the_record_keeps_downtime_bytes_and_the_timeline_of_both_hosts(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    migration = await migration_of(cluster, instance)
    assert record.metadata.migration == migration.name
    assert (migration.state, migration.kind) == (Migration.STATE_DONE, Migration.KIND_LIVE_BLOCK)
    assert migration.downtime_ms == 80, "the target's figure goes before the source's"
    assert (migration.memory_bytes, migration.iterations) == (1 << 20, 2)
    assert migration.guest_health == Migration.GUEST_HEALTH_OK
    assert [one.type for one in migration.timeline] == [
        "JOB_STARTED",
        "SOURCE_PAUSED",
        "TARGET_RESUMED",
        "SOURCE_CLEANED",
        "TARGET_DEFINED",
    ]
    events = await cluster.events(instance)
    assert events[1:] == [*(one.type for one in migration.timeline), "OPERATION_DONE"]
    assert cluster.counters.migrations == [("live_block", "done", 0.08)]
    assert cluster.hub.shown[operation][-1].message


async def test_disks_on_a_pool_that_both_hosts_share_are_not_copied(cluster: Cluster) -> None:
    instance = await cluster.running(pool="shared")
    operation = await migrate(cluster, instance, target_host=f"hosts/{cluster.b}")
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert (await migration_of(cluster, instance)).kind == Migration.KIND_LIVE_SHARED
    directory = cluster.directory(cluster.b, instance)
    assert directory is not None
    assert directory.shared


async def test_a_downtime_that_nobody_measured_stays_unset(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    source, target = cluster.agents.hosts[cluster.a], cluster.agents.hosts[cluster.b]
    source.migrating = Migrating.SOURCE_DIES

    async def die(host: FakeHost, key: StepKey) -> None:
        if key.step == "target_finished":
            target.fall_silent()

    cluster.agents.before = die
    await cluster.lead()
    await cluster.done(operation, DONE)
    migration = await migration_of(cluster, instance)
    assert not migration.HasField("downtime_ms")
    assert cluster.counters.migrations == [("live_block", "done", None)]


async def test_the_guest_moves_on_the_targets_evidence_when_the_source_dies_with_its_answer(
    cluster: Cluster,
) -> None:
    instance, operation = await LOCAL.admit(cluster)
    source = cluster.agents.hosts[cluster.a]
    source.migrating = Migrating.SOURCE_DIES
    term = await cluster.lead()
    await cluster.done(operation, DONE)
    status = await cluster.status(instance)
    assert (status.host_id, status.epoch) == (cluster.b, 2)
    assert await cluster.left("debts") == [f"debts/{cluster.a}/{operation}/source_released"]
    source.come_back()
    await term.engine.pay_debts(cluster.a)
    await LOCAL.succeeded(cluster, instance)


async def test_a_lost_answer_of_a_job_that_succeeded_does_not_start_another(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.hosts[cluster.a].migrating = Migrating.ANSWER_LOST
    await cluster.lead()
    await cluster.done(operation, DONE)
    await LOCAL.succeeded(cluster, instance)


async def test_a_job_that_fails_leaves_the_guest_at_the_source(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.hosts[cluster.a].migrating = Migrating.FAILS
    await cluster.lead()
    error = from_status((await cluster.done(operation, FAILED)).error)
    assert error.reason is Reason.MIGRATION_FAILED
    assert error.metadata == {"host": f"hosts/{cluster.a}", "cause": "HYPERVISOR_ERROR"}
    await LOCAL.undone(cluster, instance)
    migration = await migration_of(cluster, instance)
    assert (migration.state, migration.target_host) == (Migration.STATE_FAILED, f"hosts/{cluster.b}")
    assert not migration.HasField("downtime_ms")


async def test_without_a_named_target_up_to_three_are_tried(cluster: Cluster) -> None:
    instance = await cluster.running()
    cluster.agents.hosts[cluster.a].migrating = Migrating.FAILS
    operation = await migrate(cluster, instance)
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.MIGRATION_FAILED, "the reason of the last that fitted"
    prepared = [host for host, step, how in cluster.agents.log if "target_prepared" in step and how == "do"]
    assert prepared == [cluster.b, cluster.c]
    await LOCAL.undone(cluster, instance)


async def test_the_second_target_gets_an_epoch_of_its_own(cluster: Cluster) -> None:
    instance = await cluster.running()
    operation = await migrate(cluster, instance)

    async def refuse(host: FakeHost, key: StepKey) -> None:
        if host.id == cluster.b and key.direction == StepKey.DIRECTION_DO:
            raise RemudaError(Reason.DISK_FULL, "no room")

    cluster.agents.before = refuse
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    status = await cluster.status(instance)
    assert (status.host_id, status.epoch) == (cluster.c, 3)
    names = [step.name for step in record.metadata.steps]
    assert names.count("capacity_reserved") == names.count("target_prepared") == 2
    await cluster.nothing_is_open()


async def test_a_named_target_that_refuses_is_not_replaced_by_another(cluster: Cluster) -> None:
    _, operation = await LOCAL.admit(cluster)

    async def refuse(host: FakeHost, key: StepKey) -> None:
        if host.id == cluster.b:
            raise RemudaError(Reason.DISK_FULL, "no room")

    cluster.agents.before = refuse
    await cluster.lead()
    error = from_status((await cluster.done(operation, FAILED)).error)
    assert error.reason is Reason.DISK_FULL
    assert not cluster.agents.hosts[cluster.c].domains


async def test_a_source_that_is_asserted_wrongly_refuses_the_move(cluster: Cluster) -> None:
    instance = await cluster.running()
    operation = await migrate(cluster, instance, source_host="hosts/gamma")
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.SOURCE_HOST_MISMATCH
    await LOCAL.undone(cluster, instance)


async def test_a_cancel_is_passed_to_the_job_and_the_guest_stays(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.hosts[cluster.a].migrating = Migrating.UNTIL_CANCELLED
    await cluster.lead()
    await wait_for(lambda: cluster.agents.jobs_started or None, timeout=60)
    await cluster.cancel(operation)
    await cluster.done(operation, CANCELLED)
    await LOCAL.undone(cluster, instance)
    assert (await migration_of(cluster, instance)).state == Migration.STATE_CANCELLED


async def test_a_new_leader_joins_the_job_that_runs(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.hosts[cluster.a].migrating = Migrating.UNTIL_CANCELLED
    await cluster.lead()
    await wait_for(lambda: cluster.agents.jobs_started or None, timeout=60)
    await cluster.close()
    await cluster.lead()
    await cluster.cancel(operation)
    await cluster.done(operation, CANCELLED)
    assert cluster.agents.jobs_started == 1
    await LOCAL.undone(cluster, instance)


async def test_after_the_switch_over_a_silent_target_is_waited_for_and_the_source_not_resumed(
    cluster: Cluster,
) -> None:
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.hosts[cluster.a].migrating = Migrating.TARGET_SILENT
    await cluster.lead()
    await cluster.in_state(operation, WAITING)
    await cluster.cancel(operation)
    await asyncio.sleep(0.2)
    domain = cluster.domain(cluster.a, instance)
    assert domain is not None
    assert domain.power == PAUSED
    assert not (await cluster.operation(operation)).done

    cluster.agents.hosts[cluster.b].come_back()
    record = await cluster.done(operation, DONE)
    assert record.metadata.cancel_outcome == OperationMetadata.CANCEL_OUTCOME_TOO_LATE
    await LOCAL.succeeded(cluster, instance)


async def test_after_the_switch_over_a_fenced_target_gives_the_guest_back(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.hosts[cluster.a].migrating = Migrating.TARGET_SILENT
    term = await cluster.lead()
    await cluster.in_state(operation, WAITING)
    cluster.agents.hosts[cluster.b].domains.clear()
    await cluster.set_host_state(cluster.b, Host.STATE_FENCED)
    await cluster.done(operation, FAILED)
    domain = cluster.domain(cluster.a, instance)
    assert domain is not None
    assert domain.power == RUNNING
    await cluster.set_host_state(cluster.b, Host.STATE_UP)
    cluster.agents.hosts[cluster.b].come_back()
    await term.engine.pay_debts(cluster.b)
    await LOCAL.undone(cluster, instance)


async def test_a_guest_that_shuts_itself_down_meanwhile_is_stopped_not_restarted(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.hosts[cluster.a].migrating = Migrating.GUEST_STOPS
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.GUEST_STOPPED
    assert (await cluster.status(instance)).state == Instance.STATE_STOPPED
    domain = cluster.domain(cluster.a, instance)
    assert domain is not None
    assert domain.power == SHUTOFF
    assert cluster.agents.hosts[cluster.b].empty


async def test_a_guest_that_is_not_running_is_not_moved(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    domain = cluster.domain(cluster.a, instance)
    assert domain is not None
    domain.power, domain.reason = SHUTOFF, "shutdown"
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.GUEST_STOPPED
    assert domain.power == SHUTOFF
    await cluster.nothing_is_open()


async def test_a_source_whose_agent_is_away_for_a_while_is_waited_for(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    source = cluster.agents.hosts[cluster.a]

    async def silence(host: FakeHost, key: StepKey) -> None:
        if key.step == "target_prepared":
            source.fall_silent()

    cluster.agents.after = silence
    await cluster.lead()
    await cluster.in_state(operation, WAITING)
    source.come_back()
    await cluster.done(operation, DONE)
    await LOCAL.succeeded(cluster, instance)


async def test_a_fault_of_ours_stops_the_job_before_the_target_is_cleaned_up(cluster: Cluster) -> None:
    saga = SAGAS["LiveMigrateInstance"]
    moved = saga.step("guest_moved")

    async def broken(run: Any) -> None:
        doing = asyncio.ensure_future(moved.do(run))
        await wait_for(lambda: cluster.agents.jobs_started or None, timeout=60)
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
        raise ValueError("a bug")

    steps = [dataclasses.replace(step, do=broken) if step is moved else step for step in saga.steps]
    cluster.sagas = {**SAGAS, saga.action: dataclasses.replace(saga, steps=tuple(steps))}
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.hosts[cluster.a].migrating = Migrating.UNTIL_CANCELLED
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.INTERNAL
    assert cluster.agents.jobs_started == 1
    await LOCAL.undone(cluster, instance)


async def test_a_fault_of_ours_after_the_switch_over_turns_forward_again(cluster: Cluster) -> None:
    """The undo looks before it lets anything at the target be removed, and then there is nothing to undo."""
    saga = SAGAS["LiveMigrateInstance"]
    moved = saga.step("guest_moved")

    async def broken(run: Any) -> None:
        await moved.do(run)
        raise ValueError("a bug")

    steps = [dataclasses.replace(step, do=broken) if step is moved else step for step in saga.steps]
    cluster.sagas = {**SAGAS, saga.action: dataclasses.replace(saga, steps=tuple(steps))}
    instance, operation = await LOCAL.admit(cluster)
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    assert {step.state for step in record.metadata.steps} == {OperationStep.STATE_DONE}
    await LOCAL.succeeded(cluster, instance)


@pytest.mark.parametrize("how", list(Silence))
async def test_a_target_that_dies_while_it_is_finished_owes_its_definition(
    cluster: Cluster, how: Silence
) -> None:
    instance, operation = await LOCAL.admit(cluster)
    target = cluster.agents.hosts[cluster.b]

    async def die(host: FakeHost, key: StepKey) -> None:
        if key.step == "source_released":
            target.fall_silent(how)

    cluster.agents.after = die
    term = await cluster.lead()
    await cluster.done(operation, DONE)
    status = await cluster.status(instance)
    assert (status.host_id, status.state) == (cluster.b, Instance.STATE_RUNNING)
    target.come_back()
    assert await term.engine.pay_debts(cluster.b) == 1
    await LOCAL.succeeded(cluster, instance)


@pytest.mark.parametrize(
    ("reason", "state"),
    [("shutdown", Instance.STATE_STOPPED), ("crashed", Instance.STATE_FAILED)],
)
async def test_a_guest_that_ends_right_after_its_move_has_moved_all_the_same(
    cluster: Cluster, reason: str, state: Instance.State.ValueType
) -> None:
    instance, operation = await LOCAL.admit(cluster)

    async def end(_: FakeHost, key: StepKey) -> None:
        if key.step == "guest_moved":
            domain = cluster.domain(cluster.b, instance)
            assert domain is not None
            domain.power, domain.reason = SHUTOFF, reason

    cluster.agents.after = end
    await cluster.lead()
    await cluster.done(operation, DONE)
    status = await cluster.status(instance)
    assert (status.host_id, status.epoch, status.state) == (cluster.b, 2, state)
    assert status.observed.reason == reason
    assert cluster.domain(cluster.a, instance) is None
    await cluster.nothing_is_open()


async def test_a_source_that_is_slow_to_end_its_side_is_released_a_moment_later(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    tries = 0

    async def slow(_: FakeHost, key: StepKey) -> None:
        nonlocal tries
        if key.step == "source_released":
            tries += 1
            if tries < 3:
                raise RemudaError(Reason.HYPERVISOR_ERROR, "the copy here is still paused")

    cluster.agents.before = slow
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert tries == 3
    await LOCAL.succeeded(cluster, instance)

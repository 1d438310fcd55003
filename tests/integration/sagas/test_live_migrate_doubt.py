"""LiveMigrateInstance in doubt: hosts that say odd things, jobs that obey nobody, a Delete behind it."""

import asyncio
from typing import Any

import pytest
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId, OperationId
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import (
    CRASHED,
    PAUSED,
    RUNNING,
    SHUTOFF,
    FakeHost,
    Migrating,
)
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.testing.cluster import Cluster
from remuda_scheduler.testing.scenarios import SCENARIOS

DONE, FAILED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_FAILED
CANCELLED, WAITING = OperationMetadata.STATE_CANCELLED, OperationMetadata.STATE_WAITING_FOR_HOST
TOO_LATE = OperationMetadata.CANCEL_OUTCOME_TOO_LATE
MIGRATION_OUT = ObservedInstance.JOB_MIGRATION_OUT
LOCAL = next(scenario for scenario in SCENARIOS if scenario.name == "live migrate, local disks")


async def migrate(cluster: Cluster, instance: InstanceId, **fields: Any) -> OperationId:
    return await cluster.admit("LiveMigrateInstance", instance, LiveMigrateInstanceRequest(**fields))


async def until_event(cluster: Cluster, instance: InstanceId, kind: str) -> None:
    async def there() -> bool:
        return kind in await cluster.events(instance)

    await wait_for(there, timeout=60)


@pytest.mark.parametrize(
    ("power", "reason"), [(SHUTOFF, "shutdown"), (PAUSED, "user"), (CRASHED, "crashed"), (SHUTOFF, "unknown")]
)
async def test_a_guest_that_arrived_is_not_undone_for_a_source_that_has_forgotten_why_it_is_off(
    cluster: Cluster, power: Instance.PowerState.ValueType, reason: str
) -> None:
    """libvirtd or the source itself was restarted: "migrated" has become "unknown"."""
    instance, operation = await LOCAL.admit(cluster)

    async def forget(_: FakeHost, key: StepKey) -> None:
        if key.step == "guest_moved":
            cluster.domain_on(cluster.a, instance).reason = "unknown"
            target = cluster.domain_on(cluster.b, instance)
            target.power, target.reason = power, reason

    cluster.agents.after = forget
    await cluster.lead()
    await cluster.done(operation, DONE)
    status = await cluster.status(instance)
    assert (status.host_id, status.epoch) == (cluster.b, 2)
    assert cluster.domain(cluster.a, instance) is None
    assert cluster.domain_on(cluster.b, instance).power == (RUNNING if power == PAUSED else power)


async def test_a_source_that_is_paused_for_another_reason_is_not_resumed_either(cluster: Cluster) -> None:
    """The agent paused the guest so that its move could end: "user" says nothing about the switch-over."""
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.hosts[cluster.a].migrating = Migrating.TARGET_SILENT

    async def paused_by_us(host: FakeHost, key: StepKey) -> None:
        if key.step == "guest_moved":
            host.domains[instance].reason = "user"

    cluster.agents.after = paused_by_us
    await cluster.lead()
    await cluster.in_state(operation, WAITING)
    assert cluster.domain_on(cluster.a, instance).power == PAUSED
    cluster.agents.hosts[cluster.b].come_back()
    await cluster.done(operation, DONE)
    await LOCAL.succeeded(cluster, instance)


async def job_goes_on_without_its_agents_word(
    cluster: Cluster, *, cancellable: bool = True
) -> tuple[InstanceId, OperationId]:
    """The agent lost its connection to libvirt and says that the job failed; libvirt goes on."""
    instance, operation = await LOCAL.admit(cluster)
    source = cluster.agents.hosts[cluster.a]
    source.migrating = Migrating.UNTIL_CANCELLED
    said = asyncio.Event()

    async def lose(host: FakeHost, key: StepKey) -> None:
        if key.step != "guest_moved":
            return
        if not said.is_set():
            said.set()
            host.domains[instance].job = MIGRATION_OUT
            raise RemudaError(Reason.HYPERVISOR_ERROR, "connection closed due to keepalive timeout")
        if not cancellable:
            await asyncio.Event().wait()

    cluster.agents.before = lose
    await cluster.lead()
    await asyncio.wait_for(said.wait(), 60)
    await wait_for(lambda: len(cluster.agents.starts) > 1 or None, timeout=60)
    return instance, operation


async def test_a_job_that_goes_on_after_its_agent_gave_up_is_followed_again_and_obeys_a_cancel(
    cluster: Cluster,
) -> None:
    instance, operation = await job_goes_on_without_its_agents_word(cluster)
    await cluster.cancel(operation)
    await cluster.done(operation, CANCELLED)
    await LOCAL.undone(cluster, instance)


async def test_a_job_that_never_ends_does_not_hold_up_a_delete(cluster: Cluster) -> None:
    instance, operation = await job_goes_on_without_its_agents_word(cluster, cancellable=False)
    delete = await cluster.supersede_with_delete(instance)
    await cluster.done(operation, CANCELLED)
    await cluster.done(delete, DONE)
    await cluster.nothing_is_left()


async def test_a_job_that_cannot_be_begun_is_given_up_when_its_time_is_over(cluster: Cluster) -> None:
    instance = await cluster.running()
    request = LiveMigrateInstanceRequest(target_host=f"hosts/{cluster.b}")
    request.timeout.FromMilliseconds(300)
    operation = await cluster.admit("LiveMigrateInstance", instance, request)

    async def broken(_: FakeHost, key: StepKey) -> None:
        if key.step == "guest_moved":
            raise RemudaError(Reason.HOST_UNREACHABLE, "the stream broke")

    cluster.agents.before = broken
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.MIGRATION_TIMEOUT
    await LOCAL.undone(cluster, instance)


async def test_the_targets_bridges_go_to_the_source_with_the_order_to_move(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.bridges = {"physnet": "br-of-beta"}
    cluster.agents.hosts[cluster.a].migrating = Migrating.UNTIL_CANCELLED
    await cluster.lead()
    await wait_for(lambda: cluster.agents.starts or None, timeout=60)
    await cluster.close()
    await cluster.lead()
    await wait_for(lambda: len(cluster.agents.starts) > 1 or None, timeout=60)
    await cluster.cancel(operation)
    await cluster.done(operation, CANCELLED)
    assert {start.target.bridges["physnet"] for start in cluster.agents.starts} == {"br-of-beta"}
    await LOCAL.undone(cluster, instance)


# --- a Delete behind it ---


async def waiting_for_a_silent_target(cluster: Cluster) -> tuple[InstanceId, OperationId]:
    """After the switch-over, so that nobody knows where the guest is."""
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.hosts[cluster.a].migrating = Migrating.TARGET_SILENT
    await cluster.lead()
    await cluster.in_state(operation, WAITING)
    return instance, operation


async def test_a_delete_that_is_cancelled_in_time_leaves_the_move_waiting_and_both_copies_alone(
    cluster: Cluster,
) -> None:
    instance, operation = await waiting_for_a_silent_target(cluster)
    await cluster.close()
    delete = await cluster.supersede_with_delete(instance)
    await cluster.cancel(delete)
    await cluster.lead()
    await cluster.in_state(operation, WAITING)
    await asyncio.sleep(0.2)
    assert not (await cluster.operation(operation)).done
    assert (await cluster.status(instance)).state == Instance.STATE_RUNNING
    assert cluster.domain_on(cluster.b, instance).power == RUNNING

    cluster.agents.hosts[cluster.b].come_back()
    record = await cluster.done(operation, DONE)
    assert record.metadata.cancel_outcome == TOO_LATE
    await cluster.done(delete, CANCELLED)
    await LOCAL.succeeded(cluster, instance)


async def test_a_delete_that_is_cancelled_after_the_move_was_abandoned_for_it_is_done_all_the_same(
    cluster: Cluster,
) -> None:
    instance, operation = await waiting_for_a_silent_target(cluster)
    inside, go_on = asyncio.Event(), asyncio.Event()
    target = cluster.agents.hosts[cluster.b]

    async def hold(host: FakeHost, key: StepKey) -> None:
        if key.step == "target_removed" and not inside.is_set():
            inside.set()
            await go_on.wait()

    cluster.agents.before = hold
    # It answers orders again, yet not before the move is given up.
    delete = await cluster.supersede_with_delete(instance)
    await until_event(cluster, instance, "MIGRATION_ABANDONED")
    target.come_back()
    await asyncio.wait_for(inside.wait(), 60)
    assert (await cluster.status(instance)).state == Instance.STATE_DELETING
    await cluster.cancel(delete)
    go_on.set()
    await cluster.done(operation, CANCELLED)
    record = await cluster.done(delete, DONE)
    assert record.metadata.cancel_outcome == TOO_LATE
    await cluster.nothing_is_left()


async def test_leaders_that_die_while_a_move_is_abandoned_leave_nothing_of_the_instance(
    cluster: Cluster,
) -> None:
    instance, operation = await waiting_for_a_silent_target(cluster)
    await cluster.close()
    delete = await cluster.supersede_with_delete(instance)
    assert await cluster.through_deaths(operation) > 1
    term = await cluster.lead()
    await cluster.done(operation, CANCELLED)
    await cluster.done(delete, DONE)
    cluster.agents.hosts[cluster.b].come_back()
    await term.engine.pay_debts(cluster.b)
    await cluster.nothing_is_left()


async def test_a_delete_behind_a_guest_that_has_arrived_lets_the_move_end_first(cluster: Cluster) -> None:
    instance, operation = await waiting_for_a_silent_target(cluster)
    await cluster.close()
    delete = await cluster.supersede_with_delete(instance)
    cluster.agents.hosts[cluster.b].come_back()
    await cluster.lead()
    await cluster.done(operation, DONE)
    await cluster.done(delete, DONE)
    assert "target_removed" not in [step for _, step, _ in cluster.agents.log]
    await cluster.nothing_is_left()

"""What hosts owe: paid in order, one instance not held up by another, and never against a newer operation."""

import asyncio
import time

from google.protobuf.any_pb2 import Any
from remuda.agent.v1.agent_pb2 import RunStepRequest, StartDomain
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.instance_pb2 import (
    DeleteInstanceRequest,
    Instance,
    StartInstanceRequest,
    StopInstanceRequest,
)
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.store.v1.host_pb2 import Debt
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, InstanceId, OperationId
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import PAUSED, RUNNING, SHUTOFF, FakeHost, Migrating, Silence
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.testing.cluster import FAST, Cluster, Term

DONE, FAILED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_FAILED


def power(cluster: Cluster, host: HostId, instance: InstanceId) -> Instance.PowerState.ValueType:
    domain = cluster.domain(host, instance)
    assert domain is not None
    return domain.power


async def stop(cluster: Cluster, instance: InstanceId) -> OperationId:
    return await cluster.admit("StopInstance", instance, StopInstanceRequest(force=True))


async def start(cluster: Cluster, instance: InstanceId) -> OperationId:
    return await cluster.admit("StartInstance", instance, StartInstanceRequest())


async def delete(cluster: Cluster, instance: InstanceId) -> OperationId:
    return await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())


async def migrate(cluster: Cluster, instance: InstanceId) -> OperationId:
    request = LiveMigrateInstanceRequest(target_host=f"hosts/{cluster.b}")
    return await cluster.admit("LiveMigrateInstance", instance, request)


def libvirt_down(cluster: Cluster, step: str, tries: int) -> None:
    """libvirt restarts: so many orders of a step are refused by a host that answers."""

    async def refuse(_: FakeHost, key: StepKey) -> None:
        nonlocal tries
        if key.step == step and tries > 0:
            tries -= 1
            raise RemudaError(Reason.HYPERVISOR_ERROR, "cannot connect to libvirt")

    cluster.agents.before = refuse


async def debts(cluster: Cluster) -> list[Debt]:
    return [Debt.FromString(kv.value) for kv in (await cluster.etcd.range_prefix(cluster.keys.debts)).kvs]


async def put_debt(cluster: Cluster, request: RunStepRequest) -> str:
    """A debt as an operation before may have left it."""
    order = Any()
    order.Pack(request)
    key = cluster.keys.debt(cluster.a, OperationId(request.key.operation_id), request.key.step)
    debt = Debt(
        host_id=cluster.a,
        operation_id=request.key.operation_id,
        step=request.key.step,
        instance_id=request.key.instance_id,
        epoch=request.key.epoch,
        request=order,
    )
    await cluster.etcd.put(key, debt.SerializeToString())
    return key


# --- a late debt and a newer operation ---


async def test_a_start_that_failed_owes_nothing_that_could_stop_the_guest_later(cluster: Cluster) -> None:
    instance = await cluster.running()
    term = await cluster.lead()
    await cluster.done(await stop(cluster, instance), DONE)
    libvirt_down(cluster, "guest_started", 4)
    await cluster.done(await start(cluster, instance), FAILED)
    assert await debts(cluster) == []
    await cluster.done(await start(cluster, instance), DONE)
    await term.engine.pay_debts(cluster.a)
    assert power(cluster, cluster.a, instance) == RUNNING


async def test_a_start_whose_host_dies_in_it_owes_nothing_and_can_be_repeated(cluster: Cluster) -> None:
    instance = await cluster.running()
    host = cluster.agents.hosts[cluster.a]

    async def die(_: FakeHost, key: StepKey) -> None:
        if key.step == "guest_started":
            cluster.agents.after = alive
            host.fall_silent()

    alive = cluster.agents.after
    term = await cluster.lead()
    await cluster.done(await stop(cluster, instance), DONE)
    cluster.agents.after = die
    record = await cluster.done(await start(cluster, instance), FAILED)
    assert from_status(record.error).reason is Reason.HOST_UNREACHABLE
    assert record.metadata.steps[-1].HasField("error"), "that it was not undone is no secret"
    assert await debts(cluster) == []
    host.come_back()
    assert power(cluster, cluster.a, instance) == RUNNING, "as it is until somebody looks"
    await cluster.done(await start(cluster, instance), DONE)
    await term.engine.pay_debts(cluster.a)
    assert power(cluster, cluster.a, instance) == RUNNING


async def test_an_order_about_the_run_state_that_was_owed_once_is_dropped_unpaid(cluster: Cluster) -> None:
    """As a scheduler of an earlier version left it."""
    instance = await cluster.running()
    key = StepKey(
        operation_id="0e0c52b5-31f5-4b0b-8f63-b0f9ce5ce3f2",
        step="guest_started",
        direction=StepKey.DIRECTION_UNDO,
        instance_id=instance,
        epoch=1,
    )
    await put_debt(cluster, RunStepRequest(key=key, start_domain=StartDomain()))
    term = await cluster.lead()
    await term.engine.pay_debts(cluster.a)
    assert await debts(cluster) == []
    assert power(cluster, cluster.a, instance) == RUNNING


async def _moved_paused_and_unfinished(cluster: Cluster) -> InstanceId:
    """A paused guest on B, whose finish is owed."""
    instance = await cluster.running()
    domain = cluster.domain(cluster.a, instance)
    assert domain is not None
    domain.power = PAUSED
    libvirt_down(cluster, "target_finished", 3)
    operation = await migrate(cluster, instance)
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert [debt.step for debt in await debts(cluster)] == ["target_finished"]
    return instance


async def test_what_is_owed_is_paid_before_the_first_order_of_a_newer_operation(cluster: Cluster) -> None:
    instance = await _moved_paused_and_unfinished(cluster)
    cluster.agents.log.clear()
    await cluster.done(await stop(cluster, instance), DONE)
    assert [step for _, step, _ in cluster.agents.log] == ["target_finished", "guest_off"]
    await cluster.done(await start(cluster, instance), DONE)
    assert await debts(cluster) == []
    assert power(cluster, cluster.b, instance) == RUNNING


async def test_an_operation_on_a_host_that_cannot_pay_fails_and_says_why(cluster: Cluster) -> None:
    instance = await _moved_paused_and_unfinished(cluster)
    libvirt_down(cluster, "target_finished", 100)
    record = await cluster.done(await stop(cluster, instance), FAILED)
    error = from_status(record.error)
    assert error.reason is Reason.HYPERVISOR_ERROR
    assert "owed" in error.message
    assert power(cluster, cluster.b, instance) != SHUTOFF


async def test_a_debt_does_not_change_what_the_guest_does_now(cluster: Cluster) -> None:
    """Somebody resumed it on the host itself since it was moved."""
    instance = await _moved_paused_and_unfinished(cluster)
    domain = cluster.domain(cluster.b, instance)
    assert domain is not None
    domain.power = RUNNING
    assert cluster.term is not None
    assert await cluster.term.engine.pay_debts(cluster.b) == 1
    assert domain.power == RUNNING
    assert await debts(cluster) == []


async def test_a_payment_that_is_under_way_is_waited_for_and_not_given_twice(cluster: Cluster) -> None:
    instance = await _moved_paused_and_unfinished(cluster)
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_: FakeHost, key: StepKey) -> None:
        if key.step == "target_finished":
            inside.set()
            await go_on.wait()

    cluster.agents.before = hold
    cluster.agents.log.clear()
    assert cluster.term is not None
    paying = asyncio.create_task(cluster.term.engine.pay_debts(cluster.b))
    await asyncio.wait_for(inside.wait(), 60)
    operation = await stop(cluster, instance)

    async def open_step() -> bool:
        steps = (await cluster.operation(operation)).metadata.steps
        return [step.name for step in steps] == ["guest_off"]

    await wait_for(open_step, timeout=60)
    assert cluster.agents.log == []
    go_on.set()
    await cluster.done(operation, DONE)
    assert await paying == 1
    assert [step for _, step, _ in cluster.agents.log] == ["target_finished", "guest_off"]


# --- one debt and the others ---


async def _two_debts_on_a(cluster: Cluster, *, unpayable: InstanceId) -> tuple[Term, InstanceId]:
    """A owes the release of `unpayable`, whose copy there will refuse, and then the removal of another."""
    operation = await migrate(cluster, unpayable)
    source = cluster.agents.hosts[cluster.a]
    source.migrating = Migrating.SOURCE_DIES
    term = await cluster.lead()
    await cluster.done(operation, DONE)
    source.come_back()
    other, launch = await cluster.launch(host=f"hosts/{cluster.a}", name="other")
    await cluster.done(launch, DONE)
    source.fall_silent()
    await cluster.done(await delete(cluster, other), DONE)
    source.come_back()
    return term, other


async def test_a_debt_that_cannot_be_paid_holds_up_no_other_instance(cluster: Cluster) -> None:
    instance = await cluster.running()
    term, other = await _two_debts_on_a(cluster, unpayable=instance)
    libvirt_down(cluster, "source_released", 100)
    assert await term.engine.pay_debts(cluster.a) == 1
    assert cluster.domain(cluster.a, other) is None
    assert [debt.instance_id for debt in await debts(cluster)] == [instance]


async def test_an_order_without_an_answer_is_given_up_after_a_while(cluster: Cluster) -> None:
    """The agent goes on with it; the collector goes on with the rest."""
    instance = await cluster.running()
    cluster.timing = type(FAST)(
        patience=0.15, first_pause=0.01, longest_pause=0.05, look_again=0.02, debt_order=0.2
    )
    term, other = await _two_debts_on_a(cluster, unpayable=instance)

    async def hang(_: FakeHost, key: StepKey) -> None:
        if key.step == "source_released":
            await asyncio.Event().wait()

    cluster.agents.before = hang
    began = time.monotonic()
    assert await term.engine.pay_debts(cluster.a) == 1
    assert time.monotonic() - began < 30
    assert cluster.domain(cluster.a, other) is None


async def test_debts_of_one_instance_are_paid_in_the_order_in_which_they_were_made(cluster: Cluster) -> None:
    async def die(host: FakeHost, key: StepKey) -> None:
        if key.step == "domain_defined":
            cluster.agents.after = alive
            host.fall_silent()

    alive = cluster.agents.after
    cluster.agents.after = die
    _, operation = await cluster.launch()
    term = await cluster.lead()
    await cluster.done(operation, FAILED)
    made = sorted(
        (await cluster.etcd.range_prefix(cluster.keys.debts)).kvs, key=lambda kv: kv.create_revision
    )
    expected = [Debt.FromString(kv.value).step for kv in made]
    assert len(expected) == 3
    cluster.agents.log.clear()
    cluster.agents.hosts[cluster.a].come_back()
    assert await term.engine.pay_debts(cluster.a) == 3
    assert [step for _, step, _ in cluster.agents.log] == expected
    await cluster.nothing_is_left()


async def test_a_host_that_takes_its_time_does_not_keep_another_from_paying(cluster: Cluster) -> None:
    """The collector's own round, without anybody who asks for it."""
    cluster.timing = type(FAST)(
        patience=0.15, first_pause=0.01, longest_pause=0.05, look_again=0.02, debts_every=0.1
    )
    instances = {}
    for host in (cluster.a, cluster.b):
        instances[host], launch = await cluster.launch(host=f"hosts/{host}", name=f"vm-{host[:8]}")
        await cluster.lead()
        await cluster.done(launch, DONE)
        await cluster.close()
    slow = min(instances)  # the first in the order of the keys
    quick = max(instances)
    await cluster.lead()
    for host, instance in instances.items():
        cluster.agents.hosts[host].fall_silent()
        await cluster.done(await delete(cluster, instance), DONE)

    async def hang(host: FakeHost, _: StepKey) -> None:
        if host.id == slow:
            await asyncio.Event().wait()

    cluster.agents.before = hang
    cluster.agents.hosts[slow].come_back()
    cluster.agents.hosts[quick].come_back()

    async def paid() -> bool:
        return [debt.host_id for debt in await debts(cluster)] == [slow]

    await wait_for(paid, timeout=60)


async def test_a_debt_that_is_paid_without_our_knowing_is_paid_again_harmlessly(cluster: Cluster) -> None:
    instance = await cluster.running()
    host = cluster.agents.hosts[cluster.a]
    host.fall_silent()
    term = await cluster.lead()
    await cluster.done(await delete(cluster, instance), DONE)
    host.come_back()

    async def lose_the_answer(_: FakeHost, __: StepKey) -> None:
        cluster.agents.after = heard
        host.fall_silent(Silence.ANSWER_LOST, calls=1)

    heard, cluster.agents.after = cluster.agents.after, lose_the_answer
    assert await term.engine.pay_debts(cluster.a) == 0
    assert host.empty
    host.come_back()
    assert await term.engine.pay_debts(cluster.a) == 1
    await cluster.nothing_is_left()


# --- two copies, and the record has decided ---


async def test_a_source_that_came_back_running_is_paused_shown_and_never_destroyed(cluster: Cluster) -> None:
    instance = await cluster.running()
    operation = await migrate(cluster, instance)
    source = cluster.agents.hosts[cluster.a]
    source.migrating = Migrating.SOURCE_DIES
    term = await cluster.lead()
    await cluster.done(operation, DONE)
    domain = source.domains[instance]
    domain.power, domain.reason = RUNNING, "booted"
    source.come_back()
    for _ in range(3):
        assert await term.engine.pay_debts(cluster.a) == 0
    assert power(cluster, cluster.a, instance) == PAUSED
    assert power(cluster, cluster.b, instance) == RUNNING
    assert (await cluster.events(instance)).count("MIGRATION_SPLIT") == 1
    assert await cluster.left("debts") == [f"debts/{cluster.a}/{operation}/source_released"]

    domain.power, domain.reason = SHUTOFF, "destroyed"  # an operator has decided
    assert await term.engine.pay_debts(cluster.a) == 1
    assert cluster.domain(cluster.a, instance) is None


async def test_a_guest_that_arrived_although_its_move_was_undone_is_paused_and_shown(
    cluster: Cluster,
) -> None:
    instance = await cluster.running()
    cluster.agents.hosts[cluster.a].migrating = Migrating.FAILS
    target = cluster.agents.hosts[cluster.b]

    async def die(_: FakeHost, key: StepKey) -> None:
        if key.step == "target_prepared" and key.direction == StepKey.DIRECTION_DO:
            target.fall_silent()

    cluster.agents.after = die
    operation = await migrate(cluster, instance)
    term = await cluster.lead()
    await cluster.done(operation, FAILED)
    (debt,) = await debts(cluster)
    domain = cluster.domain(cluster.a, instance)
    assert domain is not None
    target.domains[instance] = type(domain)(epoch=debt.epoch, operation=operation, power=RUNNING)
    target.come_back()
    assert await term.engine.pay_debts(cluster.b) == 0
    assert power(cluster, cluster.b, instance) == PAUSED
    assert power(cluster, cluster.a, instance) == RUNNING
    assert "MIGRATION_SPLIT" in await cluster.events(instance)


async def test_a_second_copy_that_was_paused_is_not_taken_for_a_left_over(cluster: Cluster) -> None:
    """While the operation goes on, and afterwards: agents release what is paused and runs no job."""
    instance = await cluster.running()
    operation = await migrate(cluster, instance)
    source = cluster.agents.hosts[cluster.a]
    source.migrating = Migrating.SOURCE_DIES
    inside, go_on = asyncio.Event(), asyncio.Event()
    ordered: list[str] = []

    async def hold(_: FakeHost, key: StepKey) -> None:
        ordered.append(key.step)
        if key.step == "target_finished":
            inside.set()
            await go_on.wait()

    cluster.agents.before = hold
    term = await cluster.lead()
    await asyncio.wait_for(inside.wait(), 60)
    domain = source.domains[instance]
    domain.power, domain.reason = PAUSED, "user"
    source.come_back()
    assert await term.engine.pay_debts(cluster.a) == 0
    go_on.set()
    await cluster.done(operation, DONE)
    assert await term.engine.pay_debts(cluster.a) == 0
    assert "source_released" not in ordered
    assert domain.power == PAUSED

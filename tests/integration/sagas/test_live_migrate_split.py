"""Two hosts run the guest of a move: one copy goes on, the other is paused, an operator decides."""

from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.operation_pb2 import OperationMetadata, OperationStep
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId, OperationId
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import PAUSED, RUNNING, SHUTOFF, FakeHost, Migrating
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.testing.cluster import Cluster
from remuda_scheduler.testing.scenarios import SCENARIOS

DONE, FAILED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_FAILED
CANCELLED, OPERATOR = OperationMetadata.STATE_CANCELLED, OperationMetadata.STATE_WAITING_FOR_OPERATOR
LOCAL = next(scenario for scenario in SCENARIOS if scenario.name == "live migrate, local disks")


async def split(cluster: Cluster) -> tuple[InstanceId, OperationId]:
    """libvirt resumed the source, because it did not hear that the target runs the guest."""
    instance, operation = await LOCAL.admit(cluster)
    cluster.agents.hosts[cluster.a].migrating = Migrating.ANSWER_LOST

    async def resume(host: FakeHost, key: StepKey) -> None:
        if key.step == "guest_moved":
            host.domains[instance].power, host.domains[instance].reason = RUNNING, "migration_canceled"

    cluster.agents.after = resume
    await cluster.lead()
    await cluster.in_state(operation, OPERATOR)
    await wait_for(lambda: cluster.domain_on(cluster.b, instance).power == PAUSED, timeout=60)
    cluster.agents.after = nothing
    return instance, operation


async def nothing(_host: FakeHost, _key: StepKey) -> None:
    return


async def test_the_copy_on_record_goes_on_the_other_is_paused_and_nothing_is_destroyed(
    cluster: Cluster,
) -> None:
    instance, operation = await split(cluster)
    assert cluster.domain_on(cluster.a, instance).power == RUNNING
    assert (await cluster.status(instance)).host_id == cluster.a
    assert (await cluster.events(instance)).count("MIGRATION_SPLIT") == 1
    await cluster.close()
    await cluster.lead()
    await cluster.cancel(operation)
    looks = len(cluster.agents.log)
    await cluster.in_state(operation, OPERATOR)
    assert cluster.domain_on(cluster.b, instance).power == PAUSED, "a new leader and a cancel change nothing"
    assert (await cluster.events(instance)).count("MIGRATION_SPLIT") == 1
    assert cluster.agents.jobs_started == 1
    assert len(cluster.agents.log) == looks


async def test_a_second_copy_that_cannot_be_paused_at_once_is_paused_when_its_host_obeys(
    cluster: Cluster,
) -> None:
    refused = 0

    async def refuse(_: FakeHost, key: StepKey) -> None:
        nonlocal refused
        if key.step == "second_copy_paused" and refused < 3:
            refused += 1
            raise RemudaError(Reason.HYPERVISOR_ERROR, "libvirtd restarts")

    cluster.agents.before = refuse
    await split(cluster)
    assert refused == 3


async def test_the_paused_copy_does_not_take_over_when_the_guest_of_the_other_shuts_down(
    cluster: Cluster,
) -> None:
    """It is the older one: what the guest did since is on the source's disk."""
    instance, operation = await split(cluster)
    source = cluster.domain_on(cluster.a, instance)
    source.power, source.reason = SHUTOFF, "shutdown"
    await cluster.close()
    await cluster.lead()
    await cluster.in_state(operation, OPERATOR)
    assert cluster.domain_on(cluster.b, instance).power == PAUSED
    assert not (await cluster.operation(operation)).done


async def test_an_operator_who_ends_the_second_copy_ends_the_move_at_the_source(cluster: Cluster) -> None:
    instance, operation = await split(cluster)
    del cluster.agents.hosts[cluster.b].domains[instance]
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.MIGRATION_FAILED
    await LOCAL.undone(cluster, instance)


async def test_an_operator_who_lets_the_second_copy_go_on_moves_the_guest(cluster: Cluster) -> None:
    instance, operation = await split(cluster)
    source, target = cluster.domain_on(cluster.a, instance), cluster.domain_on(cluster.b, instance)
    source.power, source.reason = SHUTOFF, "destroyed"
    target.power, target.reason = RUNNING, "unpaused"
    await cluster.done(operation, DONE)
    await LOCAL.succeeded(cluster, instance)


async def test_a_delete_ends_both_copies(cluster: Cluster) -> None:
    instance, operation = await split(cluster)
    delete = await cluster.supersede_with_delete(instance)
    await cluster.done(operation, CANCELLED)
    await cluster.done(delete, DONE)
    await cluster.nothing_is_left()


async def moved_with_a_running_source(cluster: Cluster) -> tuple[InstanceId, OperationId]:
    """The record has decided for the target when the source shows that it runs, too."""
    instance, operation = await LOCAL.admit(cluster)

    async def resume(host: FakeHost, key: StepKey) -> None:
        if key.step == "source_released" and instance in host.domains:
            domain = host.domains[instance]
            if (domain.power, domain.reason) == (SHUTOFF, "migrated"):
                domain.power, domain.reason = RUNNING, "migration_canceled"

    cluster.agents.before = resume
    return instance, operation


async def test_a_source_that_runs_after_the_ownership_moved_is_paused_shown_and_still_owed(
    cluster: Cluster,
) -> None:
    instance, operation = await moved_with_a_running_source(cluster)
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    source = cluster.domain_on(cluster.a, instance)
    assert (source.power, source.reason) == (PAUSED, "user")
    assert cluster.directory(cluster.a, instance) is not None
    assert cluster.domain_on(cluster.b, instance).power == RUNNING
    status = await cluster.status(instance)
    assert (status.host_id, status.epoch, status.state) == (cluster.b, 2, Instance.STATE_RUNNING)
    assert (await cluster.events(instance)).count("MIGRATION_SPLIT") == 1
    states = {step.name: step.state for step in record.metadata.steps}
    assert states["source_released"] == OperationStep.STATE_OWED
    assert await cluster.left("debts") == [f"debts/{cluster.a}/{operation}/source_released"]
    assert "source_removed" not in [step for _, step, _ in cluster.agents.log]


async def test_a_new_leader_does_not_take_the_paused_source_for_a_left_over(cluster: Cluster) -> None:
    instance, operation = await moved_with_a_running_source(cluster)
    await cluster.through_deaths(operation, writes=3)
    await cluster.done(operation, DONE)
    assert cluster.domain_on(cluster.a, instance).power == PAUSED
    assert await cluster.left("debts") == [f"debts/{cluster.a}/{operation}/source_released"]
    assert (await cluster.events(instance)).count("MIGRATION_SPLIT") == 1


async def test_a_source_that_an_operator_ended_meanwhile_is_released(cluster: Cluster) -> None:
    instance, operation = await moved_with_a_running_source(cluster)

    async def end(host: FakeHost, key: StepKey) -> None:
        if key.step == "second_copy_paused":
            host.domains[instance].power, host.domains[instance].reason = SHUTOFF, "destroyed"

    cluster.agents.after = end
    await cluster.lead()
    await cluster.done(operation, DONE)
    await LOCAL.succeeded(cluster, instance)

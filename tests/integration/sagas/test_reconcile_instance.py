"""ReconcileInstance: what becomes of what it finds, and of hosts that refuse, are silent or owe."""

from remuda.agent.v1.agent_pb2 import RemoveInstance, RunStepRequest
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.host_pb2 import Host
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.compute.v1.reconcile_pb2 import ReconcileInstanceRequest, ReconcileReport, Repair
from remuda.store.v1.operation_pb2 import OperationRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId, OperationId
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import PAUSED, RUNNING, SHUTOFF, FakeDomain, FakeHost
from remuda_scheduler.engine.debts import debt_of
from remuda_scheduler.testing.cluster import Cluster

DONE, FAILED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_FAILED


async def reconcile(cluster: Cluster, instance: InstanceId) -> OperationId:
    return await cluster.admit("ReconcileInstance", instance, ReconcileInstanceRequest())


async def reconciled(cluster: Cluster, instance: InstanceId) -> ReconcileReport:
    """Led through; what it answers."""
    operation = await reconcile(cluster, instance)
    await cluster.lead()
    return answer(await cluster.done(operation, DONE))


def answer(record: OperationRecord) -> ReconcileReport:
    report = ReconcileReport()
    assert record.response.Unpack(report)
    return report


def told(report: ReconcileReport) -> list[tuple[str, bool, str]]:
    """(action, done, error)"""
    return [
        (Repair.Action.Name(one.action).removeprefix("ACTION_"), one.done, one.error)
        for one in report.repairs
    ]


async def test_an_instance_that_is_as_its_record_says_is_left_alone(cluster: Cluster) -> None:
    instance = await cluster.running()
    report = await reconciled(cluster, instance)
    assert told(report) == []
    assert cluster.agents.log == [], "looking is no order"
    assert [(copy.host, copy.on_record) for copy in report.found] == [(f"hosts/{cluster.a}", True)]
    assert (await cluster.status(instance)).state == Instance.STATE_RUNNING


async def test_a_second_copy_that_runs_is_paused_with_its_own_epoch_and_never_more(cluster: Cluster) -> None:
    instance = await cluster.running()
    stray = FakeDomain(epoch=7, operation="by hand", power=RUNNING)
    cluster.agents.hosts[cluster.b].domains[instance] = stray
    assert told(await reconciled(cluster, instance)) == [("PAUSE_STRAY", True, "")]
    assert (stray.power, cluster.domain_on(cluster.a, instance).power) == (PAUSED, RUNNING)
    assert "RECONCILE_PAUSE_STRAY" in await cluster.events(instance)
    await cluster.close()
    assert told(await reconciled(cluster, instance)) == [("ASK_OPERATOR", False, "")]
    assert cluster.domain(cluster.b, instance) is stray


async def test_a_definition_that_is_off_is_removed_in_the_name_of_who_asked(cluster: Cluster) -> None:
    instance = await cluster.running()
    cluster.agents.hosts[cluster.b].domains[instance] = FakeDomain(epoch=1, operation="by hand")
    assert told(await reconciled(cluster, instance)) == [("REMOVE_STRAY", True, "")]
    assert cluster.domain(cluster.b, instance) is None
    assert cluster.agents.sweeps == [(cluster.b, "user/alice")]


async def test_a_disk_that_is_gone_is_told_in_the_record_and_starts_when_it_is_back(cluster: Cluster) -> None:
    instance = await cluster.running()
    domain, directory = cluster.domain_on(cluster.a, instance), cluster.directory(cluster.a, instance)
    assert directory is not None
    domain.power, directory.disk = SHUTOFF, False
    assert told(await reconciled(cluster, instance)) == [("ASK_OPERATOR", False, ""), ("RECORD", True, "")]
    status = await cluster.status(instance)
    assert status.state == Instance.STATE_FAILED
    assert "its disk is not in pool local" in status.status_message
    assert domain.power == SHUTOFF
    directory.disk = True
    await cluster.close()
    assert told(await reconciled(cluster, instance)) == [("START", True, ""), ("RECORD", True, "")]
    status = await cluster.status(instance)
    assert (status.state, status.status_message) == (Instance.STATE_RUNNING, "")
    assert status.observed.power_state == RUNNING


async def test_a_repair_that_its_host_refuses_is_told_and_what_depends_on_it_is_not_tried(
    cluster: Cluster,
) -> None:
    instance = await cluster.running()
    del cluster.agents.hosts[cluster.a].domains[instance]

    async def refuse(_: FakeHost, key: StepKey) -> None:
        if key.step == "domain_defined":
            raise RemudaError(Reason.HYPERVISOR_ERROR, "no such machine type")

    cluster.agents.before = refuse
    assert told(await reconciled(cluster, instance)) == [
        ("DEFINE", False, "no such machine type"),
        ("START", False, "its domain could not be defined"),
    ]
    status = await cluster.status(instance)
    assert status.state == Instance.STATE_FAILED
    assert status.status_message == "not reconciled: no such machine type"
    await cluster.nothing_is_open()


async def test_without_its_host_nothing_is_decided(cluster: Cluster) -> None:
    instance = await cluster.running()
    before = await cluster.status(instance)
    cluster.agents.hosts[cluster.a].fall_silent()
    cluster.agents.hosts[cluster.b].domains[instance] = FakeDomain(epoch=1, operation="x", power=RUNNING)
    operation = await reconcile(cluster, instance)
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.HOST_UNREACHABLE
    assert cluster.domain_on(cluster.b, instance).power == RUNNING
    assert (await cluster.status(instance)).state == before.state
    await cluster.nothing_is_open()


async def test_a_fenced_host_is_not_waited_for_and_a_person_is_asked(cluster: Cluster) -> None:
    instance = await cluster.running()
    await cluster.set_host_state(cluster.a, Host.STATE_FENCED)
    report = await reconciled(cluster, instance)
    assert told(report) == [("ASK_OPERATOR", False, "")]
    assert list(report.silent_hosts) == [f"hosts/{cluster.a}"]


async def test_a_stray_whose_host_falls_silent_is_told_and_the_copy_on_record_is_seen_to(
    cluster: Cluster,
) -> None:
    instance = await cluster.running()
    cluster.domain_on(cluster.a, instance).persistent = False
    cluster.agents.hosts[cluster.b].domains[instance] = FakeDomain(epoch=1, operation="x", power=RUNNING)

    async def die(host: FakeHost, key: StepKey) -> None:
        if key.step.startswith("stray_paused"):
            host.fall_silent()
            raise RemudaError(Reason.HOST_UNREACHABLE, "no answer")

    cluster.agents.before = die
    assert told(await reconciled(cluster, instance)) == [
        ("PAUSE_STRAY", False, "no answer"),
        ("DEFINE", True, ""),
    ]
    assert cluster.domain_on(cluster.a, instance).persistent


async def test_what_a_host_owes_for_the_instance_is_paid_before_anything_is_looked_at(
    cluster: Cluster,
) -> None:
    instance = await cluster.running()
    stray = cluster.agents.hosts[cluster.b]
    stray.domains[instance] = FakeDomain(epoch=1, operation="an earlier move")
    request = RunStepRequest(
        key=StepKey(
            operation_id="6b0ff1d4-4f6b-4b41-9a7c-0b54a1f4d8f8",
            step="target_prepared",
            direction=StepKey.DIRECTION_DO,
            instance_id=instance,
            epoch=1,
        ),
        remove_instance=RemoveInstance(pool="local"),
    )
    debt = debt_of(cluster.b, request)
    key = cluster.keys.debt(cluster.b, OperationId(request.key.operation_id), request.key.step)
    await cluster.etcd.put(key, debt.SerializeToString())
    assert told(await reconciled(cluster, instance)) == []
    assert stray.empty
    await cluster.nothing_is_open()


async def test_a_delete_that_comes_meanwhile_gets_the_instance_afterwards(cluster: Cluster) -> None:
    instance = await cluster.running()
    del cluster.agents.hosts[cluster.a].domains[instance]
    operation = await reconcile(cluster, instance)
    delete = await cluster.supersede_with_delete(instance)
    await cluster.lead()
    await cluster.done(operation, OperationMetadata.STATE_CANCELLED)
    await cluster.done(delete, DONE)
    await cluster.nothing_is_left()

"""ReconcileInstance and SweepHost at the gateway: who may, what is admitted, what a repeated request gets."""

import uuid

from remuda.compute.v1 import host_pb2, instance_pb2, reconcile_pb2
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.status import from_status

from tests.integration.api.conftest import Client, Cluster, Launch, metadata_of, refusal


async def test_reconciling_is_admitted_like_any_verb_and_only_for_admins(
    cluster: Cluster, admin: Client, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    request = reconcile_pb2.ReconcileInstanceRequest(name=web.name, request_id=str(uuid.uuid4()))
    assert (await refusal(alice.instances.ReconcileInstance(request))).reason is Reason.PERMISSION_DENIED
    operation = await admin.instances.ReconcileInstance(request)
    assert metadata_of(operation).action == "ReconcileInstance"
    assert metadata_of(operation).state == OperationMetadata.STATE_PENDING
    assert (await admin.instances.ReconcileInstance(request)).name == operation.name, (
        "one request, one effect"
    )
    other = reconcile_pb2.ReconcileInstanceRequest(name=web.name)
    assert (await refusal(admin.instances.ReconcileInstance(other))).reason is Reason.INSTANCE_BUSY
    stale = reconcile_pb2.ReconcileInstanceRequest(name=web.name, etag="1")
    assert (await refusal(admin.instances.ReconcileInstance(stale))).reason is Reason.ETAG_MISMATCH
    assert (await cluster.leader.record(operation.name)).request.Is(
        reconcile_pb2.ReconcileInstanceRequest.DESCRIPTOR
    )


async def test_validate_only_of_reconciling_is_the_leaders_plan_and_admits_nothing(
    cluster: Cluster, admin: Client, launch: Launch
) -> None:
    web = await launch("web")
    repair = reconcile_pb2.Repair(action=reconcile_pb2.Repair.ACTION_START, reason="it is off")
    cluster.leader.live.report.repairs.append(repair)
    before = await cluster.keys_under()
    request = reconcile_pb2.ReconcileInstanceRequest(
        name=web.name, validate_only=True, request_id=str(uuid.uuid4())
    )
    operation = await admin.instances.ReconcileInstance(request)
    report = reconcile_pb2.ReconcileReport()
    assert operation.done
    assert operation.response.Unpack(report)
    assert list(report.repairs) == [repair]
    assert cluster.leader.live.planned == [web.uid]
    assert await cluster.keys_under() == before


async def test_reconciling_is_allowed_in_any_state_to_whoever_may(
    cluster: Cluster, admin: Client, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    for client, reason in ((admin, None), (alice, Reason.PERMISSION_DENIED)):
        request = instance_pb2.ListAllowedActionsRequest(name=web.name)
        allowed = (await client.instances.ListAllowedActions(request)).actions
        (found,) = [one for one in allowed if one.action == "ReconcileInstance"]
        assert found.allowed == (reason is None)
        assert reason is None or from_status(found.refusal).reason is reason


async def test_a_host_is_swept_by_the_leader_once_per_request_and_only_for_admins(
    cluster: Cluster, admin: Client, alice: Client
) -> None:
    host = await cluster.add_host("alpha")
    live = cluster.leader.live
    live.swept.items.add(path="local/.remuda-probe-1", removable=True, removed=True)
    request = host_pb2.SweepHostRequest(name="hosts/alpha", request_id=str(uuid.uuid4()))
    assert (await refusal(alice.hosts.SweepHost(request))).reason is Reason.PERMISSION_DENIED
    first = await admin.hosts.SweepHost(request)
    assert first == live.swept
    live.swept.ClearField("items")
    assert await admin.hosts.SweepHost(request) == first, "what the first one removed"
    listed = await admin.hosts.SweepHost(host_pb2.SweepHostRequest(name="hosts/alpha", validate_only=True))
    assert not listed.items
    assert [(one.host_id, one.validate_only) for one in live.sweeps] == [(host, False), (host, True)]
    assert {one.principal for one in live.sweeps} == {"user/root"}
    unknown = host_pb2.SweepHostRequest(name=f"hosts/{uuid.uuid4()}")
    assert (await refusal(admin.hosts.SweepHost(unknown))).reason is Reason.HOST_NOT_FOUND
    live.refusal = RemudaError(Reason.HOST_UNREACHABLE, "its agent does not answer")
    silent = host_pb2.SweepHostRequest(name="hosts/alpha", request_id=str(uuid.uuid4()))
    assert (await refusal(admin.hosts.SweepHost(silent))).reason is Reason.HOST_UNREACHABLE
    live.refusal = None
    assert await admin.hosts.SweepHost(silent) == live.swept, "a failure is not remembered"

"""validate_only of LiveMigrateInstance: the whole preflight, and no effect."""

from remuda.compute.v1 import moving_pb2
from remuda.compute.v1.moving_pb2 import MigrationCheck
from remuda_core.errors import Reason

from tests.integration.api.conftest import Client, Cluster, Launch, metadata_of, refusal


async def test_validate_only_of_a_move_is_its_preflight(
    cluster: Cluster, admin: Client, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    check = MigrationCheck(
        condition=MigrationCheck.CONDITION_STORAGE, verdict=MigrationCheck.VERDICT_FAIL, fix="Free space."
    )
    live = cluster.leader.live
    live.check.candidates.add(
        host="hosts/full", display_name="full", probed=True, verdict=check.verdict
    ).checks.append(check)
    request = moving_pb2.LiveMigrateInstanceRequest(
        name=web.name, validate_only=True, allow_version_skew=True, bandwidth_mib_s=3
    )
    error = await refusal(admin.instances.LiveMigrateInstance(request))
    assert error.reason is Reason.PREFLIGHT_FAILED
    assert [one.subject for one in error.violations] == ["hosts/full/STORAGE"]
    asked = live.checked[-1]
    assert (asked.instance_id, asked.request.allow_version_skew, asked.request.bandwidth_mib_s) == (
        web.uid,
        True,
        3,
    )
    error = await refusal(alice.instances.LiveMigrateInstance(request))
    assert [one.subject for one in error.violations] == ["STORAGE"], "hosts are the operators' business"
    live.check.candidates.add(host="hosts/free", probed=True, verdict=MigrationCheck.VERDICT_WARN)
    preview = await admin.instances.LiveMigrateInstance(request)
    assert metadata_of(preview).preflight.host == "hosts/free"

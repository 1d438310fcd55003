"""What is shown of hosts, and to whom."""

from google.longrunning.operations_pb2 import Operation
from remuda.compute.v1 import operation_pb2 as pb
from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.moving_pb2 import CheckMigrationResponse, MigrationCandidate, MigrationCheck
from remuda_api.store.operations import packed
from remuda_api.visibility import check_shown_to, migration_shown_to, shown_to
from remuda_core.auth.caller import ADMIN, Caller, Kind
from remuda_core.errors import Reason
from remuda_core.migration.preflight import preflight_failed
from remuda_core.rpc.status import from_status, request_id_of, to_status

ALICE = Caller(kind=Kind.USER, name="alice")
ROOT = Caller(kind=Kind.USER, name="root", roles=frozenset({ADMIN}))


def operation() -> Operation:
    placement = pb.PlacementExplanation(
        chosen_host="hosts/1",
        considered=2,
        rejections={"memory": 1},
        hosts=[pb.HostVerdict(host="hosts/1", display_name="node-a", eligible=True)],
    )
    metadata = pb.OperationMetadata(action="CreateInstance", placement=placement)
    return Operation(name="operations/1", metadata=packed(metadata))


def test_an_admin_is_shown_every_host() -> None:
    assert shown_to(ROOT, operation()) == operation()


def test_an_owner_is_shown_counts_and_no_host() -> None:
    given = operation()
    shown = shown_to(ALICE, given)
    metadata = pb.OperationMetadata()
    assert shown.metadata.Unpack(metadata)
    assert metadata.placement == pb.PlacementExplanation(considered=2, rejections={"memory": 1})
    assert (shown.name, metadata.action) == ("operations/1", "CreateInstance")
    assert b"node-a" not in shown.SerializeToString()
    # What others are being shown at the same moment is not touched.
    assert given == operation()


def test_an_operation_without_placement_is_shown_as_it_is() -> None:
    given = Operation(name="operations/1", metadata=packed(pb.OperationMetadata(action="StopInstance")))
    assert shown_to(ALICE, given) is given


def candidate(name: str) -> MigrationCandidate:
    check = MigrationCheck(
        condition=MigrationCheck.CONDITION_STORAGE,
        verdict=MigrationCheck.VERDICT_FAIL,
        observed_target=f"no pool on {name}",
        required="a pool",
        fix=f"mount it on {name}",
        duration_ms=7,
    )
    return MigrationCandidate(
        host=f"hosts/{name}", display_name=name, verdict=check.verdict, checks=[check], probed=True, score=2.0
    )


def refused() -> Operation:
    error = to_status(preflight_failed([candidate("node-a"), candidate("node-b")]), request_id="r-1")
    step = pb.OperationStep(name="preflight_passed", error=error)
    metadata = pb.OperationMetadata(action="LiveMigrateInstance", preflight=candidate("node-a"), steps=[step])
    return Operation(name="operations/1", done=True, error=error, metadata=packed(metadata))


def test_an_owner_is_told_which_conditions_refused_how_many_hosts() -> None:
    shown = shown_to(ALICE, refused())
    assert b"node-" not in shown.SerializeToString()
    error = from_status(shown.error)
    assert error.reason is Reason.PREFLIGHT_FAILED
    assert [(one.subject, one.description) for one in error.violations] == [("STORAGE", "It does not hold.")]
    assert request_id_of(shown.error) == "r-1"
    metadata = pb.OperationMetadata()
    assert shown.metadata.Unpack(metadata)
    assert metadata.preflight.verdict == MigrationCheck.VERDICT_FAIL
    assert from_status(metadata.steps[0].error).reason is Reason.PREFLIGHT_FAILED
    assert shown_to(ROOT, refused()) == refused()
    migration = Migration(name="m", error=refused().error)
    assert from_status(migration_shown_to(ALICE, migration).error).message == error.message
    assert migration_shown_to(ROOT, migration) is migration


def test_an_owner_sees_what_came_of_each_condition_on_hosts_without_a_name() -> None:
    checked = CheckMigrationResponse(source_host="hosts/own", candidates=[candidate("node-a")])
    assert check_shown_to(ROOT, checked) is checked
    shown = check_shown_to(ALICE, checked)
    assert b"node-a" not in shown.SerializeToString()
    assert shown.source_host == "hosts/own"
    ((check,),) = [one.checks for one in shown.candidates]
    assert (check.condition, check.verdict, check.duration_ms) == (
        MigrationCheck.CONDITION_STORAGE,
        MigrationCheck.VERDICT_FAIL,
        7,
    )

"""What is shown of hosts, and to whom."""

from google.longrunning.operations_pb2 import Operation
from remuda.compute.v1 import operation_pb2 as pb
from remuda_api.store.operations import packed
from remuda_api.visibility import shown_to
from remuda_core.auth.caller import ADMIN, Caller, Kind

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

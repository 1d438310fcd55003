"""Records and what clients see of them."""

from remuda.compute.v1 import instance_pb2, operation_pb2
from remuda.compute.v1.host_pb2 import Host
from remuda.store.v1 import host_pb2
from remuda.store.v1 import instance_pb2 as records
from remuda.store.v1 import operation_pb2 as operations
from remuda_api.allowed import allowed_actions
from remuda_api.store.hosts import Usage, host_message, usage_by_host
from remuda_api.store.instances import instance_message
from remuda_api.store.operations import operation_message
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd.cache import Entry
from remuda_core.rpc.status import from_status, to_status

Instance = instance_pb2.Instance
RECORD = records.InstanceRecord(
    project="p", id="i", display_name="web", flavor="f", image_project="p", image_id="m",
    disk_bytes=(1 << 30) + 1, requested_pool="fast", user_data=b"secret",
    requested_interfaces=[instance_pb2.NetworkInterface(network="networks/n")],
)  # fmt: skip


def entry(record: records.InstanceRecord = RECORD, revision: int = 7) -> Entry[records.InstanceRecord]:
    return Entry(key="k", value=record, create_revision=3, mod_revision=revision)


def test_an_instance_shows_what_was_asked_for_until_it_has_ports_and_a_pool() -> None:
    message = instance_message(entry(), None, None)
    assert (message.name, message.etag, message.disk_gib) == ("projects/p/instances/i", "7", 2)
    assert (message.state, message.pool, message.host) == (Instance.STATE_CREATING, "fast", "")
    assert [one.network for one in message.network_interfaces] == ["networks/n"]
    assert not message.user_data
    status = records.InstanceStatus(
        state=Instance.STATE_RUNNING,
        host_id="h",
        pool="slow",
        epoch=2,
        ports=[records.Port(network="n", address="10.0.0.2", mac_address="52:54:00:00:00:01")],
    )
    message = instance_message(entry(), status, records.Claim(operation_id="o"))
    assert (message.pool, message.host, message.operation) == ("slow", "hosts/h", "operations/o")
    assert [one.address for one in message.network_interfaces] == ["10.0.0.2"]


def test_an_operation_shows_its_error_or_its_response_only_at_the_end() -> None:
    record = operations.OperationRecord(id="o", error=to_status(RemudaError(Reason.NO_HOST_FITS, "x")))
    assert operation_message(record).WhichOneof("result") is None
    record.done = True
    assert from_status(operation_message(record).error).reason is Reason.NO_HOST_FITS
    record.ClearField("error")
    assert operation_message(record).WhichOneof("result") == "response"


def test_live_progress_and_a_wish_to_cancel_stand_in_the_metadata() -> None:
    message = operation_message(
        operations.OperationRecord(id="o"),
        cancel_requested=True,
        progress=operation_pb2.Progress(percent=5),
    )
    metadata = operation_pb2.OperationMetadata()
    assert message.metadata.Unpack(metadata)
    assert (metadata.cancel_requested, metadata.progress.percent) == (True, 5)


def test_a_reservation_on_another_host_counts_there_too() -> None:
    instance = records.InstanceRecord(id="i", vcpus=2, memory_mib=64)
    journal = operations.Journal(
        reservations=[
            operations.Reservation(host_id="b", instance_id="i", vcpus=2, memory_mib=64),
            operations.Reservation(host_id="a", instance_id="i", vcpus=2, memory_mib=64),
        ]
    )
    used = usage_by_host([instance], {"i": "a"}, [journal])
    assert used == {
        "a": Usage(vcpus=2, memory_mib=64, instances=1),
        "b": Usage(vcpus=2, memory_mib=64, instances=0),
    }


def test_a_host_that_never_attached_is_enrolling() -> None:
    record = host_pb2.HostRecord(id="h", display_name="node")
    found = Entry(key="k", value=record, create_revision=1, mod_revision=1)
    assert host_message(found, None, None).state == Host.STATE_ENROLLING
    up = host_pb2.HostStatus(state=Host.STATE_UP)
    assert host_message(found, up, Usage(vcpus=1)).usage.vcpus == 1


def test_what_a_host_warns_of_is_shown_with_it() -> None:
    record = host_pb2.HostRecord(id="h", display_name="node")
    found = Entry(key="k", value=record, create_revision=1, mod_revision=1)
    status = host_pb2.HostStatus(state=Host.STATE_UP)
    assert list(host_message(found, status, None).warnings) == []
    status.inventory.warnings.append("cpu is overridden for a lab")
    assert list(host_message(found, status, None).warnings) == ["cpu is overridden for a lab"]


def test_an_action_whose_state_holds_already_is_allowed_unless_somebody_holds_the_instance() -> None:
    running = Instance(name="projects/p/instances/i", state=Instance.STATE_RUNNING)
    start = next(one for one in allowed_actions(running, held_by="") if one.action == "StartInstance")
    assert start.allowed
    held = allowed_actions(running, held_by="operations/o")
    refused = {one.action: from_status(one.refusal).reason for one in held if not one.allowed}
    assert set(refused) == {
        "StartInstance",
        "StopInstance",
        "SnapshotInstance",
        "LiveMigrateInstance",
        "ReconcileInstance",
    }
    assert set(refused.values()) == {Reason.INSTANCE_BUSY}

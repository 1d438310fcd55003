"""SnapshotInstance's admission: operation, claim, image, name and charge in one transaction, or none."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from remuda.compute.v1 import instance_pb2, snapshot_pb2
from remuda.image.v1 import image_pb2
from remuda.store.v1 import image_pb2 as records
from remuda_core.errors import Reason
from remuda_core.ids import ImageId, ProjectId
from remuda_core.lifecycle import TABLE, Action

from tests.integration.api.conftest import GIB, Client, Cluster, Launch, Metadata, metadata_of, refusal

Image = image_pb2.Image
DEMO = ProjectId("demo")


def snapshot(instance: str, name: str = "before", **fields: object) -> snapshot_pb2.SnapshotInstanceRequest:
    return snapshot_pb2.SnapshotInstanceRequest(name=instance, display_name=name, **fields)  # type: ignore[arg-type]


async def record_of(cluster: Cluster, image: str) -> records.ImageRecord:
    kv = await cluster.etcd.get(cluster.keys.image(ImageId(image.rpartition("/")[2])))
    assert kv is not None, f"{image} has no record"
    return records.ImageRecord.FromString(kv.value)


async def usage(cluster: Cluster, project: str = "demo") -> tuple[int, int]:
    """Images, and their bytes as guests see them."""
    kv = await cluster.etcd.get(cluster.keys.image_usage(ProjectId(project)))
    found = records.ImageUsageRecord.FromString(kv.value) if kv else records.ImageUsageRecord()
    return found.images, found.charge.virtual_bytes


async def limit(cluster: Cluster, virtual_bytes: int) -> None:
    quota = records.QuotaRecord(image_virtual_bytes=virtual_bytes)
    await cluster.etcd.put(cluster.keys.quota(DEMO), quota.SerializeToString())


async def test_an_admitted_snapshot_has_an_operation_a_claim_and_a_charged_image_with_its_name(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    instance = await launch("web")
    base = await record_of(cluster, instance.image)
    base.image.architecture, base.image.guest_agent = "x86_64", True
    await cluster.etcd.put(cluster.keys.image(ImageId(base.id)), base.SerializeToString())
    request = snapshot(
        "projects/demo/instances/web", quiesce=snapshot_pb2.SnapshotInstanceRequest.QUIESCE_REQUIRED
    )
    operation = await alice.instances.SnapshotInstance(request)
    assert not operation.done
    metadata = metadata_of(operation)
    assert (metadata.action, metadata.state) == ("SnapshotInstance", Metadata.STATE_PENDING)
    assert metadata.target == instance.name
    record, image = await cluster.leader.record(operation.name), await record_of(cluster, metadata.image)
    assert (record.image_id, record.instance_id) == (image.id, instance.uid)
    admitted = snapshot_pb2.SnapshotInstanceRequest()
    assert record.request.Unpack(admitted)
    assert (admitted.name, admitted.quiesce) == (instance.name, request.quiesce)
    assert (image.project, image.operation_id) == ("demo", record.id)
    assert image.charge == records.ImageCharge(virtual_bytes=2 * GIB)
    made = image.image
    assert (made.state, made.visibility) == (Image.STATE_UPLOADING, Image.VISIBILITY_PRIVATE)
    assert (made.format, made.file_bytes, made.virtual_bytes) == (Image.FORMAT_RAW, 2 * GIB, 2 * GIB)
    assert (made.min_disk_gib, made.min_memory_mib) == (2, 32)
    assert (made.architecture, made.guest_agent) == ("x86_64", True)
    assert made.source.instance == instance.name
    assert {f"claims/{instance.uid}", "image_names/demo/before"} <= await cluster.keys_under()
    assert await usage(cluster) == (1, 2 * GIB)


async def test_a_name_that_is_taken_and_one_like_a_uuid_are_refused_and_leave_nothing(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    instance = await launch("web")
    taken = await cluster.add_image(name="before")
    there = await cluster.keys_under()
    error = await refusal(alice.instances.SnapshotInstance(snapshot(instance.name)))
    assert (error.reason, error.resource) == (Reason.ALREADY_EXISTS, taken)
    for name in (str(uuid.uuid4()), "", "Not A Label"):
        error = await refusal(alice.instances.SnapshotInstance(snapshot(instance.name, name)))
        assert error.reason is Reason.INVALID_ARGUMENT
        assert error.violations[0].subject == "display_name"
    assert await cluster.keys_under() == there


async def test_a_snapshot_beyond_the_quota_is_refused_with_the_figures(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    first, second = await launch("first"), await launch("second")
    await limit(cluster, 3 * GIB)
    await alice.instances.SnapshotInstance(snapshot(first.name, "one"))
    there = await cluster.keys_under()
    error = await refusal(alice.instances.SnapshotInstance(snapshot(second.name, "two")))
    assert error.reason is Reason.QUOTA_EXCEEDED
    assert error.metadata == {
        "limit": "image_virtual_bytes",
        "allowed": str(3 * GIB),
        "used": str(2 * GIB),
        "needed": str(4 * GIB),
    }
    assert await cluster.keys_under() == there


async def test_of_snapshots_of_one_instance_at_once_one_is_admitted_and_the_others_make_no_image(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    instance = await launch("web")
    answers = await asyncio.gather(
        *(alice.instances.SnapshotInstance(snapshot(instance.name, f"s-{n}")) for n in range(5)),
        return_exceptions=True,
    )
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
    error = await refusal(alice.instances.SnapshotInstance(snapshot(instance.name, "late")))
    assert error.reason is Reason.INSTANCE_BUSY
    assert len([key for key in await cluster.keys_under("image_names/") if "/s-" in key]) == 1
    assert await usage(cluster) == (1, 2 * GIB)


async def test_the_same_request_id_gives_the_same_snapshot_and_an_old_etag_none(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    instance = await launch("web")
    error = await refusal(alice.instances.SnapshotInstance(snapshot(instance.name, etag="1")))
    assert error.reason is Reason.ETAG_MISMATCH
    request = snapshot(instance.name, etag=instance.etag, request_id=str(uuid.uuid4()))
    first = await alice.instances.SnapshotInstance(request)
    again = await alice.instances.SnapshotInstance(request)
    assert again.name == first.name
    assert await usage(cluster) == (1, 2 * GIB)
    request.display_name = "other"
    assert (await refusal(alice.instances.SnapshotInstance(request))).reason is Reason.REQUEST_ID_REUSED


async def test_a_snapshot_that_is_only_validated_shows_the_image_and_writes_nothing(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    instance = await launch("web")
    there = await cluster.keys_under()
    operation = await alice.instances.SnapshotInstance(snapshot(instance.name, validate_only=True))
    image = Image()
    assert operation.done
    assert not operation.name
    assert not metadata_of(operation).image
    assert operation.response.Unpack(image)
    assert (image.display_name, image.virtual_bytes) == ("before", 2 * GIB)
    await limit(cluster, GIB)
    error = await refusal(alice.instances.SnapshotInstance(snapshot(instance.name, validate_only=True)))
    assert error.reason is Reason.QUOTA_EXCEEDED
    assert await cluster.keys_under() - {"quotas/demo"} == there


@pytest.mark.parametrize("state", sorted(set(instance_pb2.Instance.State.values()) - {0}))
async def test_a_snapshot_is_admitted_from_the_states_of_the_table_only(
    alice: Client, launch: Launch, state: "instance_pb2.Instance.State.ValueType"
) -> None:
    instance = await launch("web", state=state)
    if state in TABLE[Action.SNAPSHOT].allowed_from:
        assert (await alice.instances.SnapshotInstance(snapshot(instance.name))).name
        return
    error = await refusal(alice.instances.SnapshotInstance(snapshot(instance.name)))
    assert error.reason is Reason.STATE_FORBIDS_ACTION


async def test_nobody_makes_an_image_of_an_instance_of_another_project(
    cluster: Cluster, bob: Client, launch: Launch
) -> None:
    instance = await launch("web")
    error = await refusal(bob.instances.SnapshotInstance(snapshot(instance.name)))
    assert error.reason is Reason.PERMISSION_DENIED
    foreign = f"projects/other/instances/{instance.uid}"
    error = await refusal(bob.instances.SnapshotInstance(snapshot(foreign)))
    assert error.reason is Reason.INSTANCE_NOT_FOUND
    assert not await cluster.keys_under("image_usage/")


async def test_the_bytes_of_a_snapshot_are_not_a_clients_to_send(alice: Client, launch: Launch) -> None:
    instance = await launch("web")
    operation = await alice.instances.SnapshotInstance(snapshot(instance.name))
    image = metadata_of(operation).image

    async def frames() -> AsyncIterator[image_pb2.UploadImageRequest]:
        yield image_pb2.UploadImageRequest(name=image, data=b"x")

    async def upload() -> object:
        return await alice.images.UploadImage(frames())

    for call in (upload(), alice.images.GetUpload(image_pb2.GetUploadRequest(name=image))):
        error = await refusal(call)
        assert (error.reason, error.metadata["operation"]) == (Reason.STATE_FORBIDS_ACTION, operation.name)

"""Quotas: limits, usage, and that both are exact however many ask at once."""

import asyncio
import uuid

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from remuda.compute.v1 import quota_pb2
from remuda.image.v1 import image_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.status import from_rpc_error

from tests.integration.api.conftest import GIB, Client, Cluster, refusal

Image = image_pb2.Image
NAME = "projects/demo/quota"


def limits(*paths: str, request_id: str = "", **fields: int) -> quota_pb2.UpdateQuotaRequest:
    return quota_pb2.UpdateQuotaRequest(
        quota=quota_pb2.Quota(name=NAME, **fields),  # type: ignore[arg-type]
        update_mask=FieldMask(paths=paths or list(fields)),
        request_id=request_id,
    )


async def quota(client: Client) -> quota_pb2.Quota:
    return await client.quotas.GetQuota(quota_pb2.GetQuotaRequest(name=NAME))


def create(name: str, *, file_bytes: int = GIB, qcow2: bool = False) -> image_pb2.CreateImageRequest:
    kind = Image.FORMAT_QCOW2 if qcow2 else Image.FORMAT_RAW
    image = Image(display_name=name, format=kind, file_bytes=file_bytes)
    return image_pb2.CreateImageRequest(parent="projects/demo", image=image)


async def test_limits_are_set_changed_and_lifted_by_admins_and_read_by_members(
    alice: Client, bob: Client, admin: Client
) -> None:
    unlimited = await quota(alice)
    assert unlimited.name == NAME
    assert not unlimited.HasField("image_virtual_bytes")
    assert not unlimited.HasField("image_stored_bytes")
    assert (await refusal(quota(bob))).reason is Reason.PERMISSION_DENIED
    denied = alice.quotas.UpdateQuota(limits(image_virtual_bytes=GIB))
    assert (await refusal(denied)).reason is Reason.PERMISSION_DENIED
    await admin.quotas.UpdateQuota(limits(image_virtual_bytes=5 * GIB, image_stored_bytes=0))
    found = await quota(alice)
    assert (found.image_virtual_bytes, found.image_stored_bytes) == (5 * GIB, 0)
    assert found.HasField("image_stored_bytes")
    changed = await admin.quotas.UpdateQuota(limits("image_stored_bytes", image_virtual_bytes=1))
    assert changed.image_virtual_bytes == 5 * GIB
    assert not changed.HasField("image_stored_bytes")
    assert await quota(alice) == changed


async def test_a_quota_is_set_once_for_a_request_id_and_not_at_all_when_only_validated(admin: Client) -> None:
    preview = limits(image_virtual_bytes=GIB)
    preview.validate_only = True
    assert (await admin.quotas.UpdateQuota(preview)).image_virtual_bytes == GIB
    assert not (await quota(admin)).HasField("image_virtual_bytes")
    once = limits(image_virtual_bytes=GIB, request_id=str(uuid.uuid4()))
    await admin.quotas.UpdateQuota(once)
    await admin.quotas.UpdateQuota(limits(image_virtual_bytes=2 * GIB))
    assert (await admin.quotas.UpdateQuota(once)).image_virtual_bytes == GIB
    assert (await quota(admin)).image_virtual_bytes == 2 * GIB


async def test_limits_that_are_none_and_names_that_are_no_quotas_are_refused(admin: Client) -> None:
    wrong = quota_pb2.UpdateQuotaRequest(quota=quota_pb2.Quota(name="projects/-/quota"))
    wrong.update_mask.SetInParent()
    for request in (limits("usage"), limits(image_virtual_bytes=-1), wrong):
        assert (await refusal(admin.quotas.UpdateQuota(request))).reason is Reason.INVALID_ARGUMENT


async def test_a_raw_upload_is_charged_at_once_and_a_qcow2_when_its_size_is_known(
    alice: Client, admin: Client
) -> None:
    await admin.quotas.UpdateQuota(limits(image_virtual_bytes=2 * GIB))
    await alice.images.CreateImage(create("raw"))
    await alice.images.CreateImage(create("compressed", file_bytes=9 * GIB, qcow2=True))
    usage = (await quota(alice)).usage
    assert (usage.images, usage.image_virtual_bytes, usage.image_stored_bytes) == (2, GIB, 0)
    error = await refusal(alice.images.CreateImage(create("more", file_bytes=GIB + 1)))
    assert error.reason is Reason.QUOTA_EXCEEDED
    assert error.metadata["limit"] == "image_virtual_bytes"
    await alice.images.CreateImage(create("exactly"))
    assert (await quota(alice)).usage.image_virtual_bytes == 2 * GIB


async def test_ten_that_come_at_once_fill_a_limit_for_three_exactly(
    cluster: Cluster, alice: Client, admin: Client
) -> None:
    """At two gateways: what keeps them apart is the transaction."""
    await cluster.start_gateway()
    elsewhere = cluster.client("user/alice;project:demo", at=1)
    await admin.quotas.UpdateQuota(limits(image_virtual_bytes=3 * GIB))
    answers = await asyncio.gather(
        *((alice, elsewhere)[n % 2].images.CreateImage(create(f"img-{n}")) for n in range(10)),
        return_exceptions=True,
    )
    refused = [from_rpc_error(a) for a in answers if isinstance(a, grpc.aio.AioRpcError)]
    assert sum(isinstance(answer, Image) for answer in answers) == 3
    assert [error.reason for error in refused] == [Reason.QUOTA_EXCEEDED] * 7
    usage = (await quota(alice)).usage
    assert (usage.images, usage.image_virtual_bytes) == (3, 3 * GIB)
    assert len(await cluster.keys_under("images/")) == 3
    assert len(await cluster.keys_under("image_names/")) == 3


async def test_many_images_made_at_once_without_a_limit_are_all_made_and_all_counted(alice: Client) -> None:
    made = await asyncio.gather(*(alice.images.CreateImage(create(f"img-{n}")) for n in range(20)))
    assert len({image.uid for image in made}) == 20
    assert (await quota(alice)).usage.image_virtual_bytes == 20 * GIB


async def test_a_limit_below_what_is_used_leaves_it_and_adds_nothing(alice: Client, admin: Client) -> None:
    made = await alice.images.CreateImage(create("raw"))
    lowered = await admin.quotas.UpdateQuota(limits(image_virtual_bytes=1))
    assert lowered.usage.image_virtual_bytes == GIB
    error: RemudaError = await refusal(alice.images.CreateImage(create("more", file_bytes=1)))
    assert error.metadata == {
        "limit": "image_virtual_bytes",
        "allowed": "1",
        "used": str(GIB),
        "needed": str(GIB + 1),
    }
    assert (await alice.images.GetImage(image_pb2.GetImageRequest(name=made.name))).uid == made.uid


async def test_a_dry_run_of_an_upload_that_has_no_room_is_refused_as_well(
    alice: Client, admin: Client
) -> None:
    await admin.quotas.UpdateQuota(limits(image_virtual_bytes=1))
    asked = create("raw")
    asked.validate_only = True
    assert (await refusal(alice.images.CreateImage(asked))).reason is Reason.QUOTA_EXCEEDED

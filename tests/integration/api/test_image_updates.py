"""UpdateImage: what changes, what does not, and who comes second."""

import asyncio
import uuid

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from remuda.image.v1 import image_pb2
from remuda_core.errors import Reason

from tests.integration.api.conftest import Client, Cluster, refusal

Image = image_pb2.Image
Request = image_pb2.UpdateImageRequest


def request(
    name: str, *paths: str, request_id: str = "", validate_only: bool = False, **fields: object
) -> Request:
    return Request(
        image=Image(name=name, **fields),  # type: ignore[arg-type]
        update_mask=FieldMask(paths=paths or list(fields)),
        request_id=request_id,
        validate_only=validate_only,
    )


async def test_only_what_the_mask_names_changes(cluster: Cluster, alice: Client) -> None:
    image = await cluster.add_image(sha256="cd" * 32)
    before = await alice.images.GetImage(image_pb2.GetImageRequest(name=image))
    changed = await alice.images.UpdateImage(
        request(image, "min_disk_gib", "rescue", min_disk_gib=3, rescue=True, guest_agent=True)
    )
    assert (changed.min_disk_gib, changed.rescue, changed.guest_agent) == (3, True, False)
    assert changed.etag != before.etag
    properties = await alice.images.UpdateImage(
        request(image, min_memory_mib=128, architecture="aarch64", guest_agent=True)
    )
    assert (properties.min_memory_mib, properties.architecture, properties.guest_agent) == (
        128,
        "aarch64",
        True,
    )
    assert (properties.min_disk_gib, properties.sha256, properties.state) == (
        3,
        "cd" * 32,
        Image.STATE_ACTIVE,
    )
    again = await alice.images.UpdateImage(request(image, min_memory_mib=128))
    assert again == properties


@pytest.mark.parametrize("path", ["state", "virtual_bytes", "sha256", "name", "source", "nonsense", "format"])
async def test_what_is_not_the_owners_to_say_cannot_be_changed(
    cluster: Cluster, alice: Client, path: str
) -> None:
    image = await cluster.add_image()
    error = await refusal(alice.images.UpdateImage(request(image, path)))
    assert (error.reason, error.violations[0].subject) == (Reason.INVALID_ARGUMENT, "update_mask")


async def test_a_new_name_is_claimed_with_the_change_and_the_old_one_is_free(
    cluster: Cluster, alice: Client
) -> None:
    image, other = await cluster.add_image(name="old"), await cluster.add_image(name="other")
    error = await refusal(alice.images.UpdateImage(request(image, display_name="other")))
    assert (error.reason, error.resource) == (Reason.ALREADY_EXISTS, other)
    for name in ("", str(uuid.uuid4()), "No Label"):
        error = await refusal(alice.images.UpdateImage(request(image, "display_name", display_name=name)))
        assert error.reason is Reason.INVALID_ARGUMENT
    renamed = await alice.images.UpdateImage(request("projects/demo/images/old", display_name="new"))
    assert (renamed.name, renamed.display_name) == (image, "new")
    names = await cluster.keys_under("image_names/")
    assert names == {"image_names/demo/new", "image_names/demo/other"}
    assert (await alice.images.UpdateImage(request(other, display_name="old"))).display_name == "old"


async def test_of_two_images_that_want_one_name_at_once_one_gets_it(cluster: Cluster, alice: Client) -> None:
    images = [await cluster.add_image(name=f"img-{number}") for number in range(4)]
    answers = await asyncio.gather(
        *(alice.images.UpdateImage(request(image, display_name="wanted")) for image in images),
        return_exceptions=True,
    )
    winners = [answer for answer in answers if isinstance(answer, Image)]
    assert len(winners) == 1
    kv = await cluster.etcd.get(f"{cluster.keys.prefix}image_names/demo/wanted")
    assert kv is not None
    assert kv.value.decode() == winners[0].uid
    assert len(await cluster.keys_under("image_names/")) == 4


async def test_an_old_etag_is_refused_and_a_request_id_has_one_effect(
    cluster: Cluster, alice: Client
) -> None:
    image = await cluster.add_image()
    error = await refusal(alice.images.UpdateImage(request(image, "rescue", rescue=True, etag="1")))
    assert error.reason is Reason.ETAG_MISMATCH
    once = request(image, min_disk_gib=4, request_id=str(uuid.uuid4()))
    first = await alice.images.UpdateImage(once)
    await alice.images.UpdateImage(request(image, min_disk_gib=5))
    assert await alice.images.UpdateImage(once) == first
    found = await alice.images.UpdateImage(request(image, "rescue", rescue=False))
    assert found.min_disk_gib == 5
    once.image.min_disk_gib = 6
    assert (await refusal(alice.images.UpdateImage(once))).reason is Reason.REQUEST_ID_REUSED


async def test_a_change_that_is_only_validated_changes_nothing(cluster: Cluster, alice: Client) -> None:
    image = await cluster.add_image(name="old")
    there = await cluster.keys_under()
    preview = await alice.images.UpdateImage(request(image, display_name="new", validate_only=True))
    assert preview.display_name == "new"
    assert await cluster.keys_under() == there
    found = await alice.images.GetImage(image_pb2.GetImageRequest(name=image))
    assert found.display_name == "old"


@pytest.mark.parametrize("state", [Image.STATE_UPLOADING, Image.STATE_PENDING, Image.STATE_DELETING])
async def test_an_image_that_is_being_filled_or_removed_is_left_alone(
    cluster: Cluster, alice: Client, state: "Image.State.ValueType"
) -> None:
    image = await cluster.add_image(state=state)
    error = await refusal(alice.images.UpdateImage(request(image, rescue=True)))
    assert error.reason is Reason.STATE_FORBIDS_ACTION
    assert error.metadata["state"] == Image.State.Name(state).removeprefix("STATE_")


async def test_an_image_that_is_not_there_is_not_found(cluster: Cluster, alice: Client) -> None:
    other = await cluster.add_image(project="other")
    for name in (f"projects/demo/images/{other.rpartition('/')[2]}", "projects/demo/images/none"):
        error = await refusal(alice.images.UpdateImage(request(name, rescue=True)))
        assert error.reason is Reason.IMAGE_NOT_FOUND


async def test_what_an_upload_needs_to_know_is_required_to_create_an_image(alice: Client) -> None:
    whole = {"display_name": "disk", "format": Image.FORMAT_RAW, "file_bytes": 5}
    for field in whole:
        image = Image(**{key: value for key, value in whole.items() if key != field})  # type: ignore[arg-type]
        asked = image_pb2.CreateImageRequest(parent="projects/demo", image=image)
        error = await refusal(alice.images.CreateImage(asked))
        assert (error.reason, error.violations[0].subject) == (Reason.INVALID_ARGUMENT, f"image.{field}")

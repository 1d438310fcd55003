"""Images of other projects: who sees and boots from them, and what a stranger learns, which is nothing."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from remuda.compute.v1 import instance_pb2
from remuda.image.v1 import image_pb2, source_pb2
from remuda_core.errors import Reason, RemudaError

from tests.integration.api.conftest import GIB, Client, Cluster, Pieces, refusal
from tests.integration.api.test_images import Stores, image_request, stores, upload

__all__ = ["stores"]

Image = image_pb2.Image
PRIVATE, SHARED, PUBLIC = Image.VISIBILITY_PRIVATE, Image.VISIBILITY_SHARED, Image.VISIBILITY_PUBLIC


def launch_in(project: str, pieces: Pieces, name: str, image: str) -> instance_pb2.CreateInstanceRequest:
    request = pieces.request(name, image=image)
    request.parent = f"projects/{project}"
    return request


def get(client: Client, name: str) -> Awaitable[Image]:
    return client.images.GetImage(image_pb2.GetImageRequest(name=name))


async def change(client: Client, name: str, *paths: str, **fields: object) -> Image:
    image = Image(name=name, **fields)  # type: ignore[arg-type]
    mask = FieldMask(paths=paths or list(fields))
    return await client.images.UpdateImage(image_pb2.UpdateImageRequest(image=image, update_mask=mask))


async def seen(client: Client, project: str, *, include_visible: bool = False) -> list[str]:
    request = image_pb2.ListImagesRequest(
        parent=f"projects/{project}", page_size=1, include_visible=include_visible
    )
    found: list[str] = []
    while True:
        page = await client.images.ListImages(request)
        found += [image.display_name for image in page.images]
        if not page.next_page_token:
            return sorted(found)
        request.page_token = page.next_page_token


async def download(client: Client, name: str) -> int:
    frames = client.images.DownloadImage(image_pb2.DownloadImageRequest(name=name))
    return sum([len(frame.data) async for frame in frames])


async def nothing_more_than(name: str) -> AsyncIterator[image_pb2.UploadImageRequest]:
    yield image_pb2.UploadImageRequest(name=name, data=b"x", finish=True)


@pytest.mark.parametrize("by", ["uid", "display name"])
async def test_a_stranger_cannot_tell_a_private_image_from_none_whatever_is_called(
    cluster: Cluster, stores: Stores, pieces: Pieces, by: str
) -> None:
    """Every rpc that takes an image's name; reads answer alike, and what writes never looks at all."""
    eve = cluster.client("user/eve;project:eve", at=1)
    private = await cluster.add_image(name="secret")
    own = await cluster.add_image(project="eve", name="own")
    await eve.instances.CreateInstance(launch_in("eve", pieces, "taken", own))
    if by == "uid":
        there, absent = private, f"projects/demo/images/{uuid.uuid4()}"
    else:
        there, absent = "projects/demo/images/secret", "projects/demo/images/absent"

    async def answers(name: str) -> list[tuple[str, RemudaError]]:
        # What else is wrong with a launch must not come first for one of them only.
        launches = [launch_in("eve", pieces, "web", name) for _ in range(5)]
        launches[1].instance.flavor = "flavors/none"
        launches[2].instance.network_interfaces[0].network = "networks/none"
        launches[3].instance.display_name = "taken"
        launches[4].validate_only = True
        delete, asked = image_pb2.DeleteImageRequest(name=name), image_pb2.GetUploadRequest(name=name)
        calls: list[tuple[str, Awaitable[object]]] = [
            ("GetImage", get(eve, name)),
            ("DownloadImage", download(eve, name)),
            *(("CreateInstance", eve.instances.CreateInstance(launch)) for launch in launches),
            ("UpdateImage", change(eve, name, visibility=SHARED, shared_with=["projects/eve"])),
            ("DeleteImage", eve.images.DeleteImage(delete)),
            ("GetUpload", eve.images.GetUpload(asked)),
            ("UploadImage", upload(eve, nothing_more_than(name))),
        ]
        return [(rpc, await refusal(call)) for rpc, call in calls]

    found, missing = await answers(there), await answers(absent)
    read = ("GetImage", "DownloadImage", "CreateInstance")
    for rpc, error in found:
        assert error.reason is (Reason.IMAGE_NOT_FOUND if rpc in read else Reason.PERMISSION_DENIED), rpc
    for (rpc, error), (_, other) in zip(found, missing, strict=True):
        told = (error.reason, error.message, dict(error.metadata), error.resource, error.violations)
        none = (other.reason, other.message.replace(absent, there), dict(other.metadata))
        assert told == (*none, other.resource.replace(absent, there), other.violations), rpc
    assert await seen(eve, "eve", include_visible=True) == ["own"]
    foreign = image_pb2.ListImagesRequest(parent="projects/demo", include_visible=True)
    assert (await refusal(eve.images.ListImages(foreign))).reason is Reason.PERMISSION_DENIED
    assert stores.first.names == []
    assert stores.first.sent == stores.second.sent == 0
    under_eves_own = await refusal(get(eve, f"projects/eve/images/{private.rpartition('/')[2]}"))
    assert under_eves_own.reason is Reason.IMAGE_NOT_FOUND


async def test_a_shared_image_is_seen_downloaded_and_booted_from_by_the_projects_it_is_shared_with(
    cluster: Cluster, stores: Stores, pieces: Pieces
) -> None:
    alice, bob = stores.client, cluster.client("user/bob;project:other", at=1)
    eve = cluster.client("user/eve;project:eve", at=1)
    image = await cluster.add_image(name="golden", sha256="cd" * 32, stored_bytes=5)
    shared = await change(alice, image, visibility=SHARED, shared_with=["projects/other"])
    assert (shared.visibility, list(shared.shared_with)) == (SHARED, ["projects/other"])
    await caught_up(cluster)
    found = await get(bob, image)
    assert (found.name, found.display_name, found.virtual_bytes) == (image, "golden", GIB)
    assert (await get(bob, "projects/demo/images/golden")).uid == found.uid
    assert await download(bob, "projects/demo/images/golden") > 0
    assert stores.first.names == [image], "the store is asked by the owner's name, and trusts the gateway"
    assert await seen(bob, "other", include_visible=True) == ["golden"]
    assert await seen(bob, "other") == []
    operation = await bob.instances.CreateInstance(launch_in("other", pieces, "web", image))
    assert operation.name
    for call in (get(eve, image), eve.instances.CreateInstance(launch_in("eve", pieces, "web", image))):
        assert (await refusal(call)).reason is Reason.IMAGE_NOT_FOUND
    for write in (
        change(bob, image, display_name="mine"),
        bob.images.DeleteImage(image_pb2.DeleteImageRequest(name=image)),
        bob.images.GetUpload(image_pb2.GetUploadRequest(name=image)),
        upload(bob, nothing_more_than(image)),
    ):
        assert (await refusal(write)).reason is Reason.PERMISSION_DENIED
    await change(alice, image, visibility=PRIVATE)
    taken_back = await refusal(download(bob, image))
    assert taken_back.reason is Reason.IMAGE_NOT_FOUND, "at once, whatever the gateway's caches show"


async def caught_up(cluster: Cluster) -> None:
    """Every gateway shows what is in etcd now."""
    revision = (await cluster.etcd.range_key(cluster.keys.leader)).revision
    for one in cluster.gateways:
        await one.caches.images.wait_revision(revision, 30)


async def test_others_are_not_shown_where_an_image_came_from_nor_with_whom_it_is_shared(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    source = source_pb2.ImageSource(
        instance="projects/demo/instances/payroll", counts=source_pb2.TransferCounts(disk_bytes=GIB)
    )
    image = await cluster.add_image(
        name="backup",
        visibility=SHARED,
        shared_with=["projects/other", "projects/third"],
        source=source,
        stored_bytes=7,
        status_message="of payroll",
    )
    own = await get(alice, image)
    assert own.source == source
    assert len(own.shared_with) == 2
    listing = image_pb2.ListImagesRequest(parent="projects/other", include_visible=True)
    for foreign in (await get(bob, image), (await bob.images.ListImages(listing)).images[0]):
        assert not foreign.HasField("source")
        assert (list(foreign.shared_with), foreign.stored_bytes, foreign.status_message) == ([], 0, "")
        assert foreign.visibility == SHARED


async def test_the_instances_project_decides_and_not_another_one_of_the_caller(
    cluster: Cluster, admin: Client, pieces: Pieces
) -> None:
    both = cluster.client("user/carol;project:demo;project:other")
    image = await cluster.add_image(name="private")
    assert (await get(both, image)).display_name == "private"
    for client in (both, admin):
        error = await refusal(client.instances.CreateInstance(launch_in("other", pieces, "web", image)))
        assert (error.reason, error.resource) == (Reason.IMAGE_NOT_FOUND, image)
    assert (await both.instances.CreateInstance(launch_in("demo", pieces, "web", image))).name


async def test_a_public_image_is_everybodys_and_only_admins_make_one(
    cluster: Cluster, alice: Client, admin: Client, pieces: Pieces
) -> None:
    eve = cluster.client("user/eve;project:eve")
    image = await cluster.add_image(name="debian")
    error = await refusal(change(alice, image, visibility=PUBLIC))
    assert (error.reason, error.metadata["role"]) == (Reason.PERMISSION_DENIED, "admin")
    made = alice.images.CreateImage(image_request(visibility=PUBLIC))
    assert (await refusal(made)).reason is Reason.PERMISSION_DENIED
    await change(admin, image, visibility=PUBLIC)
    await caught_up(cluster)
    assert (await get(eve, image)).visibility == PUBLIC
    assert await seen(eve, "eve", include_visible=True) == ["debian"]
    assert (await eve.instances.CreateInstance(launch_in("eve", pieces, "web", image))).name
    renamed = await change(alice, image, "display_name", visibility=PUBLIC, display_name="debian-12")
    assert (renamed.display_name, renamed.visibility) == ("debian-12", PUBLIC)
    assert (await change(alice, image, visibility=PRIVATE)).visibility == PRIVATE


@pytest.mark.parametrize(
    "state", [Image.STATE_UPLOADING, Image.STATE_PENDING, Image.STATE_FAILED, Image.STATE_DELETING]
)
async def test_others_see_an_image_only_while_it_is_active(
    cluster: Cluster, bob: Client, pieces: Pieces, state: "Image.State.ValueType"
) -> None:
    shared = await cluster.add_image(
        name="shared", visibility=SHARED, shared_with=["projects/other"], state=state
    )
    public = await cluster.add_image(name="public", visibility=PUBLIC, state=state)
    for image in (shared, public):
        assert (await refusal(get(bob, image))).reason is Reason.IMAGE_NOT_FOUND
        launch = bob.instances.CreateInstance(launch_in("other", pieces, "web", image))
        assert (await refusal(launch)).reason is Reason.IMAGE_NOT_FOUND
    assert await seen(bob, "other", include_visible=True) == []


async def test_what_is_no_longer_shared_keeps_its_instances_and_takes_no_new_ones(
    cluster: Cluster, alice: Client, bob: Client, pieces: Pieces
) -> None:
    image = await cluster.add_image(name="golden", visibility=SHARED, shared_with=["projects/other"])
    operation = await bob.instances.CreateInstance(launch_in("other", pieces, "web", image))
    uid = (await cluster.leader.record(operation.name)).instance_id
    unshared = await change(alice, image, visibility=PRIVATE)
    assert list(unshared.shared_with) == []
    error = await refusal(bob.instances.CreateInstance(launch_in("other", pieces, "second", image)))
    assert error.reason is Reason.IMAGE_NOT_FOUND
    assert f"image_refs/{image.rpartition('/')[2]}/{uid}" in await cluster.keys_under()
    error = await refusal(alice.images.DeleteImage(image_pb2.DeleteImageRequest(name=image)))
    assert (error.reason, error.metadata) == (Reason.IMAGE_IN_USE, {"instances": "1"})


async def test_a_launch_and_the_end_of_sharing_exclude_each_other(
    cluster: Cluster, alice: Client, bob: Client, pieces: Pieces
) -> None:
    """A launch that was admitted saw the image as it was when it was admitted: it compares its revision."""
    for number in range(5):
        image = await cluster.add_image(
            name=f"img-{number}", visibility=SHARED, shared_with=["projects/other"]
        )
        await asyncio.gather(
            bob.instances.CreateInstance(launch_in("other", pieces, f"i-{number}", image)),
            change(alice, image, visibility=PRIVATE),
            return_exceptions=True,
        )
        late = bob.instances.CreateInstance(launch_in("other", pieces, f"late-{number}", image))
        assert (await refusal(late)).reason is Reason.IMAGE_NOT_FOUND


async def test_sharing_that_makes_no_sense_is_refused(cluster: Cluster, alice: Client) -> None:
    image = await cluster.add_image(name="golden")
    for call in (
        change(alice, image, shared_with=["projects/other"]),
        change(alice, image, visibility=SHARED, shared_with=["projects/-"]),
        change(alice, image, visibility=SHARED, shared_with=["other"]),
        alice.images.CreateImage(image_request(shared_with=["projects/other"])),
    ):
        error = await refusal(call)
        assert error.reason is Reason.INVALID_ARGUMENT
        assert error.violations[0].subject.startswith("image.shared_with")
    made = await alice.images.CreateImage(
        image_request(visibility=SHARED, shared_with=["projects/z", "projects/a"])
    )
    assert list(made.shared_with) == ["projects/a", "projects/z"]

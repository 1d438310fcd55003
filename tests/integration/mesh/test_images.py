"""Images that others lie on: an instance holds what it was made from, a snapshot holds nothing."""

import random

from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1 import image_pb2
from remuda_core.errors import Reason, RemudaError

from tests.integration.mesh.conftest import Cluster, refusal, upload

MIB = 1 << 20
Image = image_pb2.Image
DISK = random.Random("parent").randbytes(9 * MIB)


async def delete_refused(cluster: Cluster, image: Image) -> RemudaError:
    return await refusal(cluster.alice.images.DeleteImage(image_pb2.DeleteImageRequest(name=image.name)))


async def snapshot(cluster: Cluster, instance: str, name: str) -> Image:
    request = SnapshotInstanceRequest(name=instance, display_name=name)
    done = await cluster.done(await cluster.alice.instances.SnapshotInstance(request))
    image = Image()
    assert done.response.Unpack(image)
    return image


async def content(cluster: Cluster, image: Image) -> list[tuple[int, bytes]]:
    """Where it is not zero. What the fake hypervisor gives for a disk is its own affair."""
    request = image_pb2.DownloadImageRequest(name=image.name)
    frames = [frame async for frame in cluster.alice.images.DownloadImage(request)]
    return [(frame.offset, frame.data) for frame in frames if frame.data]


async def test_an_image_stays_while_a_guest_lies_on_it_and_a_snapshot_outlives_both(cluster: Cluster) -> None:
    parent = await upload(cluster.alice, cluster.mesh, "parent", DISK)
    first = await cluster.launch("first", host="alpha", image=parent.name)
    child = await snapshot(cluster, first.name, "child")
    taken = await content(cluster, child)

    error = await delete_refused(cluster, parent)
    assert (error.reason, error.metadata) == (Reason.IMAGE_IN_USE, {"instances": "1"})
    # What is refused has changed nothing.
    second = await cluster.launch("second", host="alpha", image=parent.name)
    assert (await delete_refused(cluster, parent)).metadata == {"instances": "2"}
    for instance in (first, second):
        await cluster.delete(instance.name)
    await cluster.delete_image(parent.name)

    assert (await refusal(cluster.create("late", image=parent.name))).reason is Reason.IMAGE_NOT_FOUND
    assert await content(cluster, child) == taken
    # On a host that has never had any of it.
    third = await cluster.launch("third", host="beta", image=child.name)
    assert (await delete_refused(cluster, child)).reason is Reason.IMAGE_IN_USE
    await cluster.delete(third.name)
    await cluster.delete_image(child.name)
    assert await cluster.keys_left() == set()

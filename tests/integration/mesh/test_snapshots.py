"""Snapshots from the client to the image store and back into a guest, over processes that are killed."""

import asyncio

import grpc
from google.longrunning import operations_pb2 as lro
from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1 import image_pb2
from remuda_core.errors import Reason
from remuda_core.rpc.status import from_rpc_error
from remuda_core.testing.waiting import wait_for

from tests.integration.mesh.conftest import Cluster, Instance, Metadata, metadata_of

Image = image_pb2.Image


async def snapshot(cluster: Cluster, instance: str, name: str) -> lro.Operation:
    request = SnapshotInstanceRequest(name=instance, display_name=name)
    return await cluster.alice.instances.SnapshotInstance(request)


async def image_of(cluster: Cluster, operation: lro.Operation) -> Image:
    """As the image store has it. Raises IMAGE_NOT_FOUND as AioRpcError."""
    request = image_pb2.GetImageRequest(name=metadata_of(operation).image)
    return await cluster.alice.images.GetImage(request)


async def remove(cluster: Cluster, operation: lro.Operation) -> None:
    """Of the session's mesh: other tests count its images."""
    request = image_pb2.DeleteImageRequest(name=metadata_of(operation).image)
    await cluster.alice.images.DeleteImage(request)
    await until_gone(cluster, operation)


async def until_gone(cluster: Cluster, operation: lro.Operation) -> None:
    async def gone() -> bool:
        try:
            await image_of(cluster, operation)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason is Reason.IMAGE_NOT_FOUND
        return False

    await wait_for(gone, timeout=60, last_status=cluster.mesh.log_tails)


async def test_a_snapshot_is_watched_to_its_end_and_becomes_another_guest(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha")
    watched = cluster.watch(await snapshot(cluster, made.name, "monday"))
    ended = await watched.end()
    assert not ended.HasField("error"), ended.error
    image = Image()
    assert ended.response.Unpack(image)
    assert image == await image_of(cluster, ended)
    assert (image.display_name, image.source.instance) == ("monday", made.name)
    assert image.state == Image.STATE_ACTIVE
    steps = [step.name for step in metadata_of(ended).steps]
    assert steps == ["disk_uploaded", "transfer_ended"]
    assert set(watched.phases) <= {*steps, ""}
    assert watched.percents == sorted(watched.percents)
    kept = await cluster.get(made.name)
    assert (kept.state, kept.host, kept.operation) == (Instance.STATE_RUNNING, cluster.host("alpha"), "")
    assert "SNAPSHOT_CREATED" in await cluster.events(made.name)
    copy = await cluster.launch("web-2", host="beta", image=image.name)
    assert copy.image == image.name
    await cluster.delete(copy.name)
    await remove(cluster, ended)


async def test_of_cancel_and_commit_one_wins_and_nothing_is_between(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha")
    operation = await snapshot(cluster, made.name, "monday")
    await cluster.cancel(operation.name)
    ended = await cluster.ended(operation)
    if ended.HasField("error"):
        assert metadata_of(ended).state == Metadata.STATE_CANCELLED
        await until_gone(cluster, ended)
    else:
        assert (await image_of(cluster, ended)).state == Image.STATE_ACTIVE
        await remove(cluster, ended)
    assert (await cluster.get(made.name)).state == Instance.STATE_RUNNING


async def test_a_snapshot_ends_though_the_only_image_store_dies_on_the_way(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha")
    operation = await snapshot(cluster, made.name, "monday")
    cluster.mesh.processes["image-store"].kill()
    await asyncio.to_thread(cluster.mesh.start)
    ended = await cluster.ended(operation, timeout=150)
    assert not ended.HasField("error"), (ended.error, cluster.mesh.log_tails())
    assert (await image_of(cluster, ended)).state == Image.STATE_ACTIVE
    await remove(cluster, ended)

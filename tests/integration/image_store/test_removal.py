"""Deleted images take along what only they had, and nothing else."""

import uuid

import pytest
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd.election import Election
from remuda_core.ids import InstanceId, ProjectId
from remuda_core.images.chunks import CHUNK_BYTES
from remuda_core.testing.waiting import wait_for
from remuda_image_store.blobs import Blobs
from remuda_image_store.content import Content
from remuda_image_store.records import Changed, Records
from remuda_image_store.removal import Remover
from remuda_image_store.sweep_lock import sweep_lock
from remuda_image_store.testing import PROJECT, Cloud, noise


def remover_of(cloud: Cloud) -> Remover:
    """To see what one removal does, beside the service's own."""
    content = Content(Blobs.open(f"file://{cloud.directory}/backend"))
    return Remover(cloud.etcd, Records(cloud.etcd, cloud.keys), content, holder="test")


async def test_chunks_that_another_image_has_stay_and_the_rest_goes(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    shared, own, others = noise(1, CHUNK_BYTES), noise(2, CHUNK_BYTES), noise(3, CHUNK_BYTES)
    going, staying = await cloud.create(shared + own), await cloud.create(shared + others)
    for sample in (going, staying):
        await images.upload(sample)
    assert (len(cloud.blobs("chunks")), len(cloud.blobs("manifests"))) == (3, 2)
    await cloud.delete(going)
    await cloud.wait_gone(going)
    assert (len(cloud.blobs("chunks")), len(cloud.blobs("manifests"))) == (2, 1)
    assert await images.download(staying) == staying.data
    name = cloud.keys.image_name(ProjectId(PROJECT), f"image-{going.id[:8]}")
    assert await cloud.etcd.get(name) is None
    await cloud.delete(staying)
    await cloud.wait_gone(staying)
    assert cloud.blobs("chunks") == cloud.blobs("manifests") == set()


async def test_one_of_two_identical_images_takes_nothing_along(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    one, two = [await cloud.create(noise(4, CHUNK_BYTES)) for _ in range(2)]
    for sample in (one, two):
        await images.upload(sample)
    await cloud.delete(one)
    await cloud.wait_gone(one)
    assert await images.download(two) == two.data


async def test_an_unfinished_upload_is_removed_with_its_parts(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(5, CHUNK_BYTES))
    await images.upload(sample, finish=False)
    assert cloud.blobs("uploads")
    await cloud.delete(sample)
    await cloud.wait_gone(sample)
    assert cloud.blobs("uploads") == set()
    assert await cloud.etcd.get(cloud.keys.upload(sample.id)) is None


async def test_an_image_that_an_instance_is_based_on_waits(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(6, CHUNK_BYTES))
    await images.upload(sample)
    reference = await cloud.put_reference(sample, InstanceId(str(uuid.uuid4())))
    await cloud.delete(sample)
    remover = remover_of(cloud)
    assert not await remover.remove(sample.id)
    assert len(cloud.blobs("chunks")) == 1
    await cloud.etcd.delete(reference)
    assert await remover.remove(sample.id) or await cloud.record(sample) is None
    assert cloud.blobs("chunks") == set()


async def test_an_image_that_is_not_deleting_is_never_removed(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(7, CHUNK_BYTES))
    await images.upload(sample)
    assert not await remover_of(cloud).remove(sample.id)
    assert await images.download(sample) == sample.data


async def test_no_chunk_is_removed_while_another_manifest_cannot_be_read(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    going, staying = await cloud.create(noise(8, CHUNK_BYTES)), await cloud.create(noise(9, CHUNK_BYTES))
    for sample in (going, staying):
        await images.upload(sample)
    kept = await cloud.record(staying)
    assert kept is not None
    digest = kept.manifest_digest
    manifest = cloud.directory / "backend/manifests" / digest[:2] / digest
    blob = manifest.read_bytes()
    manifest.unlink()
    await cloud.delete(going)
    with pytest.raises(Exception, match=r"manifest .* is lost"):
        await remover_of(cloud).remove(going.id)
    assert len(cloud.blobs("chunks")) == 2
    manifest.write_bytes(blob)
    assert await remover_of(cloud).remove(going.id) or await cloud.record(going) is None
    assert len(cloud.blobs("chunks")) == 1


async def test_a_removal_that_stopped_half_way_is_finished(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(10, 2 * CHUNK_BYTES))
    await images.upload(sample)
    # As far as one comes that is killed after the manifest and before the record.
    for kind in ("chunks", "manifests"):
        for path in (cloud.directory / "backend" / kind).rglob("*/*"):
            path.unlink()
    await cloud.delete(sample)
    await cloud.wait_gone(sample)


async def test_removal_waits_for_whoever_holds_the_lock(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(11, CHUNK_BYTES))
    await images.upload(sample)
    holder = Election(cloud.etcd, cloud.keys.image_sweep, b"somebody", 10)
    await holder.campaign()
    await cloud.delete(sample)

    async def a_remover_waits() -> bool:
        return len(await cloud.etcd.leases()) >= 2

    await wait_for(a_remover_waits, timeout=60)
    assert len(cloud.blobs("chunks")) == 1
    await holder.resign()
    await cloud.wait_gone(sample)


async def test_who_has_lost_the_lock_removes_nothing_more(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(12, CHUNK_BYTES))
    await images.upload(sample)
    records = Records(cloud.etcd, cloud.keys)
    found = await records.by_id(sample.id)
    assert found is not None
    async with sweep_lock(cloud.etcd, cloud.keys.image_sweep, "test") as lock:
        lock.check()
        await cloud.etcd.delete(cloud.keys.image_sweep)

        def refusal() -> RemudaError | None:
            try:
                lock.check()
            except RemudaError as error:
                return error
            return None

        assert (await wait_for(refusal, timeout=60)).reason is Reason.STORE_UNAVAILABLE
        with pytest.raises(Changed):
            await records.remove(found, compare=[lock.fence])
    assert await cloud.record(sample) is not None

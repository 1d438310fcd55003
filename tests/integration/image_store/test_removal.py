"""Deleted images go at once, what only they had goes with garbage collection, and nothing else goes."""

import uuid

import grpc
import pytest
from remuda.store.v1 import gc_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.ids import InstanceId, ProjectId
from remuda_core.images.chunks import CHUNK_BYTES
from remuda_core.rpc.status import from_rpc_error
from remuda_core.testing.waiting import wait_for
from remuda_image_store.blob_names import Names, read_names, remove_blobs
from remuda_image_store.blobs import Blobs
from remuda_image_store.content import Content
from remuda_image_store.records import Records
from remuda_image_store.removal import Remover
from remuda_image_store.shard_locks import shard_locks
from remuda_image_store.testing import PROJECT, Cloud, noise


def remover_of(cloud: Cloud) -> Remover:
    """To see what one removal does, beside the service's own."""
    return Remover(Records(cloud.etcd, cloud.keys), Content(Blobs.open(cloud.settings.backend)))


async def test_chunks_that_another_image_has_stay_and_the_rest_goes(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    shared, own, others = noise(1, CHUNK_BYTES), noise(2, CHUNK_BYTES), noise(3, CHUNK_BYTES)
    going, staying = await cloud.create(shared + own), await cloud.create(shared + others)
    for sample in (going, staying):
        await images.upload(sample)
    await cloud.delete(going)
    await cloud.wait_gone(going)
    # One pass finds it out, only the next one removes it.
    await cloud.collect(passes=1)
    assert (len(cloud.blobs("chunks")), len(cloud.blobs("manifests"))) == (3, 2)
    await cloud.collect(passes=1)
    assert cloud.blobs("chunks") == cloud.needed(staying)
    assert len(cloud.blobs("manifests")) == 1
    assert await images.download(staying) == staying.data
    name = cloud.keys.image_name(ProjectId(PROJECT), f"image-{going.id[:8]}")
    assert await cloud.etcd.get(name) is None
    await cloud.delete(staying)
    await cloud.wait_gone(staying)
    await cloud.collect()
    assert cloud.blobs("chunks") == cloud.blobs("manifests") == cloud.blobs("marks") == set()
    assert not cloud.lost


async def test_what_was_charged_is_given_back(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(4, CHUNK_BYTES))
    await images.upload(sample)
    key = cloud.keys.image_usage(PROJECT)
    kv = await cloud.etcd.get(key)
    assert kv is not None
    assert store_pb2.ImageUsageRecord.FromString(kv.value).charge.virtual_bytes == CHUNK_BYTES
    await cloud.delete(sample)
    await cloud.wait_gone(sample)
    kv = await cloud.etcd.get(key)
    assert kv is not None
    assert store_pb2.ImageUsageRecord.FromString(kv.value) == store_pb2.ImageUsageRecord(
        charge=store_pb2.ImageCharge()
    )


async def test_an_unfinished_upload_counts_until_it_is_removed(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(5, 2 * CHUNK_BYTES))
    await images.upload(sample, stop=CHUNK_BYTES, finish=False)
    assert cloud.blobs("uploads")
    await cloud.collect(passes=3)
    await images.upload(sample, start=CHUNK_BYTES)
    assert await images.download(sample) == sample.data
    half = await cloud.create(noise(6, 2 * CHUNK_BYTES))
    await images.upload(half, stop=CHUNK_BYTES, finish=False)
    await cloud.delete(half)
    await cloud.wait_gone(half)
    await cloud.collect()
    assert cloud.blobs("uploads") == set()
    assert cloud.blobs("chunks") == cloud.needed(sample)
    assert await cloud.etcd.get(cloud.keys.upload(half.id)) is None


async def test_what_no_record_names_goes_whoever_left_it(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(7, CHUNK_BYTES))
    await images.upload(sample)
    # Parts of an image that is gone and of one that is ACTIVE, a temporary file, marks of a killed pass.
    backend = cloud.directory / "backend"
    left = [
        backend / f"uploads/{uuid.uuid4()}/ledger/part",
        backend / f"uploads/{sample.id}/segment/0000",
        backend / ".tmp/left",
        backend / f"marks/07/{uuid.uuid4()}",
        backend / "chunks/07/no-digest",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left behind")
    await cloud.collect()
    assert [path for path in left if path.exists()] == []
    assert await images.download(sample) == sample.data


async def test_an_image_that_an_instance_is_based_on_waits(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(8, CHUNK_BYTES))
    await images.upload(sample)
    reference = await cloud.put_reference(sample, InstanceId(str(uuid.uuid4())))
    await cloud.delete(sample)
    remover = remover_of(cloud)
    assert not await remover.remove(sample.id)
    await cloud.collect()
    assert cloud.blobs("chunks") == cloud.needed(sample)
    await cloud.etcd.delete(reference)
    assert await remover.remove(sample.id) or await cloud.record(sample) is None
    await cloud.collect()
    assert cloud.blobs("chunks") == set()


async def test_an_image_that_is_not_deleting_is_never_removed(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(9, CHUNK_BYTES))
    await images.upload(sample)
    assert not await remover_of(cloud).remove(sample.id)
    assert await images.download(sample) == sample.data


async def test_no_chunk_is_removed_while_the_manifest_of_an_active_image_cannot_be_read(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    going, staying = await cloud.create(noise(10, CHUNK_BYTES)), await cloud.create(noise(11, CHUNK_BYTES))
    for sample in (going, staying):
        await images.upload(sample)
    kept = await cloud.record(staying)
    assert kept is not None
    digest = kept.manifest_digest
    manifest = cloud.directory / "backend/manifests" / digest[:2] / digest
    blob = manifest.read_bytes()
    manifest.unlink()
    await cloud.delete(going)
    await cloud.wait_gone(going)
    with pytest.raises(RemudaError, match=r"manifest .* is lost"):
        await cloud.collect()
    assert len(cloud.blobs("chunks")) == 2
    manifest.write_bytes(blob)
    await cloud.collect()
    assert cloud.blobs("chunks") == cloud.needed(staying)


async def test_the_service_collects_by_itself_and_says_so(cloud: Cloud) -> None:
    cloud.settings = cloud.settings.model_copy(
        update={"gc_grace_seconds": 0.2, "gc_every_seconds": 0.2, "metrics_listen": "127.0.0.1:0"}
    )
    replica = cloud.spawn()
    images = await cloud.images(await replica.wait_serving())
    sample = await cloud.create(noise(12, CHUNK_BYTES))
    await images.upload(sample)
    await cloud.delete(sample)

    def collected() -> bool:
        return cloud.blobs("chunks") == cloud.blobs("manifests") == set()

    await wait_for(collected, timeout=120, last_status=lambda: cloud.blobs("chunks"))

    def told() -> bool:
        text = replica.http("/metrics")
        return "remuda_image_gc_removed_blobs_total 2.0" in text and "gc_marked_blobs 0.0" in text

    await wait_for(told, timeout=60, last_status=lambda: replica.http("/metrics"))


async def test_two_sweepers_share_the_shards_and_a_lost_lease_stops_one(cloud: Cloud) -> None:
    async with (
        shard_locks(cloud.etcd, cloud.keys, ("00", "01"), "one") as one,
        shard_locks(cloud.etcd, cloud.keys, ("00", "01", "02"), "two") as two,
    ):
        assert (one.shards, two.shards) == ({"00", "01"}, {"02"})
        one.check()
        kv = await cloud.etcd.get(cloud.keys.gc_shard("00"))
        assert kv is not None
        await cloud.etcd.revoke_lease(kv.lease)

        def refusal() -> RemudaError | None:
            try:
                one.check()
            except RemudaError as error:
                return error
            return None

        assert (await wait_for(refusal, timeout=60)).reason is Reason.STORE_UNAVAILABLE

        async def everything(_: Names) -> list[str]:
            return ["chunks/00/x"]

        removing = remove_blobs(
            cloud.etcd,
            cloud.keys,
            Blobs.open(cloud.settings.backend),
            ["chunks/00/x"],
            everything,
            fence=[one.fence("00")],
        )
        with pytest.raises(RemudaError, match="somebody else's"):
            await removing
    assert await cloud.etcd.count(cloud.keys.gc_shards) == 0


async def test_a_chunk_that_may_still_be_removed_by_somebody_late_gets_another_name(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(13, 2 * CHUNK_BYTES))
    await images.upload(sample, finish=False)
    (first, second) = sorted(cloud.blobs("chunks"))
    name = f"chunks/{first[:2]}/{first}"
    # A sweeper that was stopped in front of the deletion.
    record = gc_pb2.DoomRecord(names=[name])
    record.time.GetCurrentTime()
    doom = cloud.keys.doomed("stopped")
    await cloud.etcd.txn(
        success=[ops.put(doom, record.SerializeToString()), ops.put(cloud.keys.last_doom(first[:2]), b"")]
    )
    # What is there counts as lacking: the client is asked for it once more.
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await images.upload(sample, start=await images.committed(sample))
    assert from_rpc_error(caught.value).reason is Reason.UPLOAD_OFFSET_MISMATCH
    await images.upload(sample, start=await images.committed(sample))
    (cloud.directory / "backend" / name).unlink(missing_ok=True)
    assert await images.download(sample) == sample.data
    names = await read_names(cloud.etcd, cloud.keys)
    assert names.again[name].startswith(f"{name}.")
    await cloud.collect()
    assert {blob.partition(".")[0] for blob in cloud.blobs("chunks")} == {first, second}
    # Given up by hand: from now on its own name is as good as any.
    await cloud.etcd.delete(doom)
    await cloud.collect()
    assert await images.download(sample) == sample.data

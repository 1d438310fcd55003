"""What a client's image is charged: its own chunks as stored, whatever the store happened to have."""

from pathlib import Path

import grpc
import pytest
from remuda.image.v1 import image_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason
from remuda_core.images.chunks import CHUNK_BYTES
from remuda_core.rpc.status import from_rpc_error
from remuda_image_store.testing import PROJECT, QCOW2, RAW, Cloud, noise
from remuda_image_store.testing_disks import qcow2_of

Image = image_pb2.Image


async def usage(cloud: Cloud) -> store_pb2.ImageUsageRecord:
    kv = await cloud.etcd.get(cloud.keys.image_usage(PROJECT))
    return store_pb2.ImageUsageRecord.FromString(kv.value) if kv else store_pb2.ImageUsageRecord()


async def limit(cloud: Cloud, **limits: int) -> None:
    await cloud.etcd.put(cloud.keys.quota(PROJECT), store_pb2.QuotaRecord(**limits).SerializeToString())


async def test_two_images_of_one_disk_are_charged_the_same_and_give_it_back(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    disk = noise(1, CHUNK_BYTES) + bytes(CHUNK_BYTES) + noise(1, CHUNK_BYTES) + noise(2, 512)
    samples = [await cloud.create(disk) for _ in range(2)]
    stored = [(await images.upload(sample)).image.stored_bytes for sample in samples]
    # The chunk that is there twice counts once, zeros count nothing.
    assert CHUNK_BYTES < stored[0] < CHUNK_BYTES + 1024
    assert stored[0] == stored[1]
    charge = (await usage(cloud)).charge
    assert (charge.virtual_bytes, charge.stored_bytes) == (2 * len(disk), 2 * stored[0])
    for sample in samples:
        await cloud.delete(sample)
        await cloud.wait_gone(sample)
    assert await usage(cloud) == store_pb2.ImageUsageRecord(charge=store_pb2.ImageCharge())


@pytest.mark.parametrize("form", [RAW, QCOW2], ids=["raw", "qcow2"])
@pytest.mark.parametrize("limited", ["image_stored_bytes", "image_virtual_bytes"])
async def test_an_image_beyond_the_quota_fails_and_nothing_of_it_stays(
    cloud: Cloud, tmp_path: Path, form: "Image.Format.ValueType", limited: str
) -> None:
    await limit(cloud, **{limited: CHUNK_BYTES})
    images = await cloud.images(await cloud.serve())
    disk = noise(3, CHUNK_BYTES + 512)
    sample = await cloud.create(disk if form == RAW else qcow2_of(disk, tmp_path), form)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await images.upload(sample)
    error = from_rpc_error(caught.value)
    assert error.reason is Reason.QUOTA_EXCEEDED
    record = await cloud.record(sample)
    assert record is not None
    assert (record.state, record.status_message) == (Image.STATE_FAILED, error.message)
    charge = (await usage(cloud)).charge
    assert (charge.virtual_bytes, charge.stored_bytes) == (0, 0)
    await cloud.collect()
    assert cloud.blobs("chunks") == cloud.blobs("manifests") == cloud.blobs("uploads") == set()

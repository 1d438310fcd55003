"""Uploads, downloads and garbage collection over S3: a killed replica loses nothing there either."""

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from remuda.image.v1 import image_pb2
from remuda_core.images.chunks import CHUNK_BYTES
from remuda_core.testing.waiting import wait_for
from remuda_image_store.blob_names import read_names
from remuda_image_store.blobs import Blobs
from remuda_image_store.testing import QCOW2, Cloud, noise
from remuda_image_store.testing_disks import checked, qcow2_of, random_sparse
from remuda_image_store.testing_s3 import S3Server, s3_server

MIB = 1 << 20
SWEPT_SECONDS = 300.0


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_cloud(cloud: Cloud, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    cloud.settings = cloud.settings.model_copy(update={"backend": s3.make_bucket()})
    return cloud


async def test_disks_come_back_from_a_bucket_in_both_formats(s3_cloud: Cloud, tmp_path: Path) -> None:
    images = await s3_cloud.images(await s3_cloud.serve())
    disk = random_sparse(3) + noise(1, CHUNK_BYTES)
    raw = await s3_cloud.create(disk)
    packed = await s3_cloud.create(qcow2_of(disk, tmp_path, "-c"), QCOW2)
    digests = {(await images.upload(sample)).image.manifest_digest for sample in (raw, packed)}
    assert len(digests) == 1
    assert await images.download(raw) == disk
    assert checked(await images.download(packed, 0, QCOW2), tmp_path)[: len(disk)] == disk


async def test_an_upload_into_a_bucket_whose_replica_is_killed_goes_on_at_another_one(
    s3_cloud: Cloud,
) -> None:
    first, second = s3_cloud.spawn(), s3_cloud.spawn()
    sample = await s3_cloud.create(noise(2, 4 * CHUNK_BYTES + 512))
    one = await s3_cloud.images(await first.wait_serving())
    call = one.stub.UploadImage(**one.options)
    for frame in itertools.islice(sample.frames(), 3 * CHUNK_BYTES // MIB):
        await call.write(frame)

    async def something_is_safe() -> bool:
        return await one.committed(sample) >= CHUNK_BYTES

    await wait_for(something_is_safe, timeout=90)
    first.process.send_signal(signal.SIGKILL)
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    two = await s3_cloud.images(await second.wait_serving())
    answer = await two.upload(sample, start=await two.committed(sample))
    assert answer.image.state == image_pb2.Image.STATE_ACTIVE
    assert await two.download(sample) == sample.data


async def names_in(cloud: Cloud, kind: str) -> set[str]:
    """Of the bucket's blobs of a kind: chunks, manifests, uploads, marks."""
    blobs = Blobs.open(cloud.settings.backend)
    return {blob.key.rpartition("/")[2] async for blob in blobs.list(kind)}


async def test_a_sweep_of_a_bucket_takes_what_nothing_refers_to_and_leaves_an_upload_that_is_under_way(
    s3_cloud: Cloud,
) -> None:
    cloud = s3_cloud
    images = await cloud.images(await cloud.serve())
    shared, own, others = noise(3, CHUNK_BYTES), noise(4, CHUNK_BYTES), noise(5, CHUNK_BYTES)
    going, staying = await cloud.create(shared + own), await cloud.create(shared + others)
    for sample in (going, staying):
        await images.upload(sample)
    coming = await cloud.create(noise(6, 3 * CHUNK_BYTES))
    frames = iter(list(coming.frames()))
    call = images.stub.UploadImage(timeout=SWEPT_SECONDS)
    for frame in itertools.islice(frames, 2 * CHUNK_BYTES // MIB):
        await call.write(frame)

    async def half_is_safe() -> bool:
        return await images.committed(coming) >= CHUNK_BYTES

    await wait_for(half_is_safe, timeout=90)
    await cloud.delete(going)
    await cloud.wait_gone(going)
    free = cloud.needed(going) - cloud.needed(staying)
    (digest,) = free
    await cloud.collect(passes=1)
    assert await names_in(cloud, "chunks") >= cloud.needed(going, staying)
    assert await names_in(cloud, "marks")
    await cloud.collect(passes=1)
    left = await names_in(cloud, "chunks")
    assert left >= cloud.needed(staying)
    assert not left & free
    # It went the long way: its name was doomed before, and may be used again now.
    assert await cloud.etcd.get(cloud.keys.last_doom(digest[:2])) is not None
    assert not (await read_names(cloud.etcd, cloud.keys)).doomed
    assert await images.download(staying) == staying.data

    # The stream has been open all the while.
    for frame in frames:
        await call.write(frame)
    await call.done_writing()
    assert (await call).image.state == image_pb2.Image.STATE_ACTIVE
    assert await images.download(coming) == coming.data
    again = await cloud.create(going.data)
    await images.upload(again)
    assert await images.download(again) == going.data

    for sample in (staying, coming, again):
        await cloud.delete(sample)
        await cloud.wait_gone(sample)
    await cloud.collect()
    for kind in ("chunks", "manifests", "marks", "uploads"):
        assert await names_in(cloud, kind) == set(), kind
    assert not cloud.lost

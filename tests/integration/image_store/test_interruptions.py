"""Client, connection or store are gone at any moment: another replica goes on from what is safe."""

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from remuda.image.v1 import image_pb2
from remuda_core.images.chunks import CHUNK_BYTES
from remuda_core.testing.tcp_proxy import TcpProxy
from remuda_image_store.testing import QCOW2, RAW, Cloud, Images, Replica, Sample, noise
from remuda_image_store.testing_disks import qcow2_of

Image = image_pb2.Image
MIB = 1 << 20
FORMATS = pytest.mark.parametrize("form", [RAW, QCOW2], ids=["raw", "qcow2"])


def file_of(form: "Image.Format.ValueType", seed: int, directory: Path) -> bytes:
    disk = noise(seed, 3 * CHUNK_BYTES + MIB) + bytes(CHUNK_BYTES) + noise(seed + 1, CHUNK_BYTES + 512)
    return disk if form == RAW else qcow2_of(disk, directory)


async def send_some(images: Images, sample: Sample, frames: int) -> "grpc.aio.StreamUnaryCall[Any, Any]":
    """A stream that has sent so many frames, from what is safe on, and is still open."""
    call = images.stub.UploadImage(**images.options)
    start = await images.committed(sample)
    for count, frame in enumerate(sample.frames(start)):
        if count == frames:
            break
        await call.write(frame)
    return call


async def finished(images: Images, sample: Sample) -> Image:
    """As a client goes on: it asks what is safe, and is told once more when somebody else was quicker."""
    for _ in range(20):
        try:
            return (await images.upload(sample, start=await images.committed(sample))).image
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE):
                raise
            await asyncio.sleep(0.2)
    raise AssertionError(f"{sample.name} does not get finished")


@FORMATS
async def test_stores_that_are_killed_one_after_another_lose_nothing(
    cloud: Cloud, tmp_path: Path, form: "Image.Format.ValueType"
) -> None:
    dice = random.Random(form)
    sample = await cloud.create(file_of(form, 1, tmp_path), form)
    safe = 0
    for _ in range(3):
        replica = cloud.spawn()
        images = await cloud.images(await replica.wait_serving())
        # What was answered as safe stays so.
        now = await images.committed(sample)
        assert now >= safe
        call = await send_some(images, sample, dice.randrange(1, 6))
        safe = await images.committed(sample)
        replica.kill()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call
    images = await cloud.images(await cloud.serve())
    assert (await finished(images, sample)).state == Image.STATE_ACTIVE
    again = await cloud.create(file_of(form, 1, tmp_path), form)
    whole = (await images.upload(again)).image
    record = await cloud.record(sample)
    assert record is not None
    assert (record.manifest_digest, record.stored_bytes) == (whole.manifest_digest, whole.stored_bytes)
    await cloud.collect()
    assert await images.download(sample) == await images.download(again)
    assert cloud.blobs("uploads") == set()


@FORMATS
async def test_a_store_that_is_killed_while_it_finishes_leaves_an_upload_that_another_one_finishes(
    cloud: Cloud, tmp_path: Path, form: "Image.Format.ValueType"
) -> None:
    dice = random.Random(form)
    images = await cloud.images(await cloud.serve())
    samples: list[tuple[Sample, Replica]] = []
    for seed in range(2):
        sample = await cloud.create(file_of(form, 10 + seed, tmp_path), form)
        await images.upload(sample, finish=False)
        samples.append((sample, cloud.spawn()))
    for sample, replica in samples:
        other = await cloud.images(await replica.wait_serving())
        task = asyncio.ensure_future(other.upload(sample, start=len(sample.data)))
        # It may be over before that: then the answer is as good.
        await asyncio.wait({task}, timeout=dice.random() / 10)
        replica.kill()
        await asyncio.gather(task, return_exceptions=True)
        assert (await finished(images, sample)).state == Image.STATE_ACTIVE
        expected = sample.data if form == RAW else None
        disk = await images.download(sample)
        assert expected is None or disk == expected


@FORMATS
async def test_a_client_or_a_connection_that_goes_away_costs_what_was_not_safe_yet(
    cloud: Cloud, tmp_path: Path, form: "Image.Format.ValueType"
) -> None:
    host, _, port = (await cloud.serve()).partition(":")
    direct = await cloud.images(f"{host}:{port}")
    sample = await cloud.create(file_of(form, 20, tmp_path), form)
    gone = await send_some(direct, sample, 5)
    gone.cancel()
    proxy = TcpProxy(host, int(port))
    await proxy.restore()
    try:
        through = await cloud.images(proxy.endpoint)
        call = await send_some(through, sample, 5)
        await proxy.cut()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    finally:
        await proxy.cut()
    assert (await finished(direct, sample)).state == Image.STATE_ACTIVE
    assert cloud.blobs("uploads") == set()


@FORMATS
async def test_a_download_whose_store_is_killed_goes_on_at_another_one(
    cloud: Cloud, form: "Image.Format.ValueType"
) -> None:
    replica, other = cloud.spawn(), await cloud.images(await cloud.serve())
    images = await cloud.images(await replica.wait_serving())
    sample = await cloud.create(noise(30, 4 * CHUNK_BYTES) + bytes(CHUNK_BYTES) + noise(31, MIB))
    await images.upload(sample)
    request = image_pb2.DownloadImageRequest(name=sample.name, format=form)
    got = bytearray()
    # It may all be on its way already: what has come counts, whichever end it comes to.
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for frame in images.stub.DownloadImage(request, **images.options):
            got += frame.data or bytes(frame.zero_bytes)
            replica.kill()
    assert got
    rest = await other.download(sample, len(got), form)
    assert bytes(got) + rest == await other.download(sample, 0, form)

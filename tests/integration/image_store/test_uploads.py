"""Uploading: what comes out is what went in, interruptions cost little, and what is no disk is refused."""

import asyncio
import contextlib
import hashlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from remuda.image.v1 import image_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.images.chunks import CHUNK_BYTES, Digest
from remuda_core.images.manifest import Manifest
from remuda_core.rpc.status import from_rpc_error
from remuda_core.testing.waiting import wait_for
from remuda_image_store.blobs import Blobs, Space
from remuda_image_store.content import Content
from remuda_image_store.testing import QCOW2, RAW, Cloud, Gate, Images, Sample, noise

Image = image_pb2.Image
MIB = 1 << 20


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, timeout=60)


def qcow2_of(disk: bytes, directory: Path, *options: str) -> bytes:
    raw, made = directory / "made.raw", directory / "made.qcow2"
    raw.write_bytes(disk)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, made)
    return made.read_bytes()


@pytest.fixture
def disk() -> bytes:
    """Data, zeros, text, the same data again, and an end that is no whole chunk."""
    data = noise(1, CHUNK_BYTES)
    text = (b"and so on " * CHUNK_BYTES)[:CHUNK_BYTES]
    return data + bytes(3 * CHUNK_BYTES) + text + data + noise(2, MIB + 512)


async def refusal(images: Images, sample: Sample, **frames: int) -> RemudaError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await images.upload(sample, **frames)
    return from_rpc_error(caught.value)


async def test_a_raw_disk_comes_back_bit_for_bit_and_zeros_and_repetition_cost_nothing(
    cloud: Cloud, disk: bytes
) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(disk)
    answer = await images.upload(sample)
    assert answer.image.state == Image.STATE_ACTIVE
    assert answer.image.virtual_bytes == answer.committed_bytes == len(disk)
    assert answer.image.name == sample.name
    assert await images.download(sample) == disk
    assert len(cloud.blobs("chunks")) == 3
    assert 5 * MIB < answer.image.stored_bytes < 6 * MIB
    assert cloud.blobs("uploads") == set()
    assert [frame.zero_bytes for frame in await images.frames(sample) if frame.zero_bytes] == [
        3 * CHUNK_BYTES
    ]


@pytest.mark.parametrize("options", [(), ("-c",), ("-o", "compat=0.10")], ids=["plain", "compressed", "old"])
async def test_a_qcow2_disk_comes_back_as_the_bytes_that_the_guest_sees(
    cloud: Cloud, disk: bytes, tmp_path: Path, options: tuple[str, ...]
) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(qcow2_of(disk, tmp_path, *options), QCOW2)
    answer = await images.upload(sample)
    assert answer.image.virtual_bytes == len(disk)
    assert await images.download(sample) == disk


async def test_the_same_disk_in_another_format_is_stored_once_and_counts_the_same(
    cloud: Cloud, disk: bytes, tmp_path: Path
) -> None:
    images = await cloud.images(await cloud.serve())
    first = await images.upload(await cloud.create(disk))
    second = await images.upload(await cloud.create(qcow2_of(disk, tmp_path), QCOW2))
    assert second.image.manifest_digest == first.image.manifest_digest
    # Whether the store happened to have it shows nowhere.
    assert second.image.stored_bytes == first.image.stored_bytes > 0
    assert len(cloud.blobs("chunks")) == 3


@pytest.mark.parametrize("offset", [1, MIB + 7, CHUNK_BYTES - 1, 2 * CHUNK_BYTES + 5, 6 * CHUNK_BYTES + 1])
async def test_a_download_goes_on_from_any_byte(cloud: Cloud, disk: bytes, offset: int) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(disk)
    await images.upload(sample)
    assert await images.download(sample, offset) == disk[offset:]
    assert await images.download(sample, len(disk)) == b""


async def test_an_upload_goes_on_at_another_replica_from_what_is_safe(cloud: Cloud) -> None:
    one, two = [await cloud.images(await cloud.serve()) for _ in range(2)]
    sample = await cloud.create(noise(3, 6 * CHUNK_BYTES + 512))
    safe = 2 * CHUNK_BYTES
    # A chunk that is not whole is not kept.
    first = await one.upload(sample, stop=safe + 3 * MIB, finish=False)
    assert (first.committed_bytes, first.image.state) == (safe, Image.STATE_UPLOADING)
    assert await two.committed(sample) == safe
    assert (await two.upload(sample, start=safe)).image.state == Image.STATE_ACTIVE
    assert await one.download(sample) == sample.data
    assert await one.committed(sample) == len(sample.data)


async def test_a_stream_that_was_overtaken_cannot_add_to_the_upload(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(4, 2 * CHUNK_BYTES + MIB))
    frames = list(sample.frames())
    slow = images.stub.UploadImage(**images.options)
    await slow.write(frames[0])
    await images.upload(sample, stop=CHUNK_BYTES, finish=False)
    # Where it is refused early, there is nobody left to write to.
    with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        for frame in frames[1:]:
            await slow.write(frame)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await slow
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert await images.committed(sample) == CHUNK_BYTES
    assert len(cloud.blobs("uploads")) == 1
    await images.upload(sample, start=CHUNK_BYTES)
    assert await images.download(sample) == sample.data


async def test_the_last_frame_may_be_sent_again_when_its_answer_was_lost(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(5, MIB))
    first = await images.upload(sample)
    again = await images.upload(sample, start=MIB)
    assert again == first


async def test_several_who_finish_one_upload_at_a_time_all_get_the_image(cloud: Cloud) -> None:
    one, two = [await cloud.images(await cloud.serve()) for _ in range(2)]
    sample = await cloud.create(noise(6, 2 * MIB))
    await one.upload(sample, finish=False)
    answers = await asyncio.gather(
        *(images.upload(sample, start=2 * MIB) for images in (one, one, two)), return_exceptions=True
    )
    done = [answer for answer in answers if isinstance(answer, image_pb2.UploadImageResponse)]
    # The two replicas may have met: then one of them says so, and asking again finds the image.
    assert done
    assert {answer.image.state for answer in done} == {Image.STATE_ACTIVE}
    assert (await two.upload(sample, start=2 * MIB)).image.state == Image.STATE_ACTIVE


@pytest.mark.parametrize("form", [RAW, QCOW2], ids=["raw", "qcow2"])
async def test_a_chunk_that_is_removed_before_the_image_counts_is_put_again(
    cloud: Cloud,
    tmp_path: Path,
    form: "image_pb2.Image.Format.ValueType",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = await cloud.images(await cloud.serve())
    content = noise(7, CHUNK_BYTES + MIB)
    sample = await cloud.create(content if form == RAW else qcow2_of(content, tmp_path), form)
    gate = Gate(monkeypatch)
    uploading = asyncio.create_task(images.upload(sample))

    async def pending() -> bool:
        record = await cloud.record(sample)
        return record is not None and record.state == Image.STATE_PENDING

    await wait_for(pending, timeout=20)
    for path in (cloud.directory / "backend/chunks").rglob("*/*"):
        path.unlink()
    for path in (cloud.directory / "backend/manifests").rglob("*/*"):
        path.unlink()
    gate.open.set()
    if form == RAW:
        # Nothing was kept but the chunks: the client is asked for them again.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await uploading
        assert from_rpc_error(caught.value).reason is Reason.UPLOAD_OFFSET_MISMATCH
        assert await images.committed(sample) == 0
        uploading = asyncio.create_task(images.upload(sample))
    assert (await uploading).image.state == Image.STATE_ACTIVE
    assert await images.download(sample) == content


async def test_a_wrong_sha256_fails_the_image(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(8, MIB), sha256=hashlib.sha256(b"something else").hexdigest())
    error = await refusal(images, sample)
    assert error.reason is Reason.DIGEST_MISMATCH
    record = await cloud.record(sample)
    assert record is not None
    assert record.state == Image.STATE_FAILED
    assert "SHA-256" in record.status_message
    assert cloud.blobs("uploads") == set()


async def test_an_image_without_a_sha256_is_accepted(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(9, MIB), sha256="")
    assert (await images.upload(sample)).image.state == Image.STATE_ACTIVE


def with_backing_file(directory: Path) -> bytes:
    qemu_img("create", "-f", "qcow2", directory / "base.qcow2", "1M")
    qemu_img("create", "-f", "qcow2", "-b", directory / "base.qcow2", "-F", "qcow2", directory / "bad")
    return (directory / "bad").read_bytes()


def with_data_file(directory: Path) -> bytes:
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={directory / 'secret'}", directory / "bad", "1M")
    return (directory / "bad").read_bytes()


def encrypted(directory: Path) -> bytes:
    secret = ("--object", "secret,id=s,data=secret")
    # Not LUKS: qemu-img measures the CPU first, and fails or takes a minute on a machine with uneven time.
    options = "encrypt.format=aes,encrypt.key-secret=s"
    qemu_img("create", *secret, "-f", "qcow2", "-o", options, directory / "bad", "1M")
    return (directory / "bad").read_bytes()


def truncated(directory: Path) -> bytes:
    return qcow2_of(noise(10, 2 * MIB), directory)[:-MIB]


def cut_in_its_tables(directory: Path) -> bytes:
    return qcow2_of(noise(10, 2 * MIB), directory)[:70_000]


def absurd(directory: Path) -> bytes:
    qemu_img("create", "-f", "qcow2", directory / "bad", "60T")
    return (directory / "bad").read_bytes()


def vmdk(directory: Path) -> bytes:
    qemu_img("create", "-f", "vmdk", directory / "bad", "1M")
    return (directory / "bad").read_bytes()


@pytest.mark.parametrize(
    ("make", "form", "why"),
    [
        (with_backing_file, QCOW2, "backing file"),
        (with_data_file, QCOW2, "another file"),
        (encrypted, QCOW2, "encrypted"),
        (truncated, QCOW2, "truncated or corrupt"),
        (cut_in_its_tables, QCOW2, "refuses|truncated"),
        (absurd, QCOW2, "larger than"),
        (vmdk, QCOW2, "VMDK, not qcow2"),
        (with_backing_file, RAW, "qcow2, not raw"),
        (lambda _: bytes(1000), RAW, "truncated"),
    ],
    ids=["backing", "data", "encrypted", "truncated", "cut", "absurd", "vmdk", "not-raw", "odd"],
)
async def test_a_file_that_is_no_acceptable_disk_fails_the_image_and_leaves_nothing(
    cloud: Cloud,
    tmp_path: Path,
    make: Callable[[Path], bytes],
    form: "image_pb2.Image.Format.ValueType",
    why: str,
) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(make(tmp_path), form)
    error = await refusal(images, sample)
    assert error.reason is Reason.IMAGE_REFUSED
    record = await cloud.record(sample)
    assert record is not None
    assert record.state == Image.STATE_FAILED
    assert re.search(why, record.status_message)
    assert str(tmp_path) not in record.status_message
    assert cloud.blobs("uploads") == cloud.blobs("chunks") == cloud.blobs("manifests") == set()
    assert [path for scratch in tmp_path.glob("scratch-*") for path in scratch.iterdir()] == []
    assert (await refusal(images, sample)).reason is Reason.STATE_FORBIDS_ACTION


async def test_a_small_file_that_unpacks_beyond_the_scratch_room_is_refused(
    cloud: Cloud, tmp_path: Path
) -> None:
    cloud.settings = cloud.settings.model_copy(update={"scratch_bytes": 2 * MIB})
    images = await cloud.images(await cloud.serve())
    bomb = qcow2_of(b"\1" * (64 * MIB), tmp_path, "-c")
    assert len(bomb) < 2 * MIB
    error = await refusal(images, await cloud.create(bomb, QCOW2))
    assert error.reason is Reason.IMAGE_REFUSED
    assert "holds more than" in error.message


@pytest.mark.parametrize("limit", ["scratch_bytes", "largest_disk_bytes"])
async def test_a_file_that_is_announced_too_large_is_refused_before_its_bytes_are_taken(
    cloud: Cloud, limit: str
) -> None:
    cloud.settings = cloud.settings.model_copy(update={limit: 16 * MIB})
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(19, 17 * MIB), QCOW2 if limit == "scratch_bytes" else RAW)
    error = await refusal(images, sample, stop=MIB, finish=False)
    assert error.reason is Reason.IMAGE_REFUSED
    assert str(17 * MIB) in error.message
    record = await cloud.record(sample)
    assert record is not None
    assert (record.state, record.status_message) == (Image.STATE_FAILED, error.message)
    assert cloud.blobs("uploads") == set()


async def test_a_file_that_the_backend_has_no_room_for_is_refused_before_its_bytes_are_taken(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(20, CHUNK_BYTES + MIB))
    monkeypatch.setattr(Blobs, "space", lambda _: Space(2 * MIB, 64 * MIB))
    assert (await refusal(images, sample, stop=MIB, finish=False)).reason is Reason.DISK_FULL
    assert cloud.blobs("uploads") == set()
    # Room may come: the image waits for it, and what has come needs no room again.
    monkeypatch.undo()
    assert (await images.upload(sample, stop=CHUNK_BYTES, finish=False)).committed_bytes == CHUNK_BYTES
    monkeypatch.setattr(Blobs, "space", lambda _: Space(2 * MIB, 64 * MIB))
    assert (await images.upload(sample, start=CHUNK_BYTES)).image.state == Image.STATE_ACTIVE


async def test_frames_that_do_not_fit_the_upload_are_refused(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(11, CHUNK_BYTES + 2 * MIB))
    gap = await refusal(images, sample, start=MIB)
    assert gap.reason is Reason.UPLOAD_OFFSET_MISMATCH
    assert gap.metadata["committed_bytes"] == "0"
    early = await refusal(images, sample, stop=CHUNK_BYTES)
    assert early.reason is Reason.INVALID_ARGUMENT
    assert await images.committed(sample) == CHUNK_BYTES
    longer = Sample(id=sample.id, data=sample.data + b"more")
    assert (await refusal(images, longer, start=CHUNK_BYTES)).reason is Reason.INVALID_ARGUMENT
    nobody = Sample(id=sample.id, data=b"x")
    frame = image_pb2.UploadImageRequest(data=b"x")
    with pytest.raises(grpc.aio.AioRpcError) as unnamed:
        await images.stub.UploadImage(iter([frame]), **images.options)
    assert unnamed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refusal(images, nobody)).reason is Reason.UPLOAD_OFFSET_MISMATCH
    await images.upload(sample, start=CHUNK_BYTES)
    assert await images.download(sample) == sample.data


async def test_an_image_is_found_by_its_display_name_and_not_from_another_project(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(12, MIB))
    await images.upload(sample)
    named = image_pb2.GetUploadRequest(name=f"projects/demo/images/image-{sample.id[:8]}")
    assert (await images.stub.GetUpload(named, **images.options)).name == sample.name
    for name in (f"projects/other/images/{sample.id}", "projects/demo/images/nothing"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await images.stub.GetUpload(image_pb2.GetUploadRequest(name=name), **images.options)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_what_is_not_active_cannot_be_downloaded(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(13, MIB))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await images.download(sample)
    assert from_rpc_error(caught.value).reason is Reason.IMAGE_NOT_ACTIVE


async def test_an_upload_that_was_interrupted_too_often_is_refused(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(14, MIB), QCOW2)
    segments = [store_pb2.UploadRecord.Segment(id=f"{n:016x}", offset=n) for n in range(4096)]
    record = store_pb2.UploadRecord(image_id=sample.id, committed_bytes=4096, segments=segments)
    await cloud.etcd.put(cloud.keys.upload(sample.id), record.SerializeToString())
    error = await refusal(images, sample, start=4096)
    assert error.reason is Reason.STATE_FORBIDS_ACTION
    assert "too often" in error.message


@pytest.mark.parametrize("form", [RAW, QCOW2], ids=["ledger", "part"])
async def test_a_part_that_is_lost_fails_the_image(
    cloud: Cloud, form: "image_pb2.Image.Format.ValueType"
) -> None:
    images = await cloud.images(await cloud.serve())
    head = b"QFI\xfb\0\0\0\3" + bytes(504) if form == QCOW2 else b""
    sample = await cloud.create(head + noise(15, CHUNK_BYTES + MIB - len(head)), form)
    await images.upload(sample, stop=CHUNK_BYTES, finish=False)
    (part,) = [path for path in (cloud.directory / "backend/uploads").rglob("*") if path.is_file()]
    part.unlink()
    error = await refusal(images, sample, start=CHUNK_BYTES)
    assert error.reason is Reason.DIGEST_MISMATCH
    record = await cloud.record(sample)
    assert record is not None
    assert record.state == Image.STATE_FAILED


async def test_an_image_that_is_deleted_during_its_import_does_not_become_active(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(noise(16, MIB))
    gate = Gate(monkeypatch)
    uploading = asyncio.create_task(images.upload(sample))

    async def pending() -> bool:
        record = await cloud.record(sample)
        return record is not None and record.state == Image.STATE_PENDING

    await wait_for(pending, timeout=20)
    await cloud.delete(sample)
    gate.open.set()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await uploading
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await cloud.wait_gone(sample)
    # Whichever came last, nothing names these chunks any more, and nothing keeps them.
    await cloud.collect()
    assert cloud.blobs("chunks") == cloud.blobs("uploads") == set()


async def test_chunks_of_an_image_that_is_deleted_before_its_record_names_them_do_not_stay(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = await cloud.images(await cloud.serve())
    other = await cloud.create(noise(18, CHUNK_BYTES))
    await images.upload(other)
    sample = await cloud.create(noise(18, CHUNK_BYTES) + noise(17, MIB))
    put_manifest = Content.put_manifest

    async def deleted_meanwhile(self: Content, manifest: Manifest) -> Digest:
        await cloud.delete(sample)
        await cloud.wait_gone(sample)
        return await put_manifest(self, manifest)

    monkeypatch.setattr(Content, "put_manifest", deleted_meanwhile)
    assert (await refusal(images, sample)).reason is Reason.STATE_FORBIDS_ACTION
    await cloud.collect()
    assert (len(cloud.blobs("chunks")), len(cloud.blobs("manifests"))) == (1, 1)
    assert await images.download(other) == other.data


async def test_records_are_the_apis_business(cloud: Cloud) -> None:
    images = await cloud.images(await cloud.serve())
    parent, name = "projects/demo", "projects/demo/images/x"
    new = image_pb2.Image(display_name="x", format=RAW, file_bytes=1)
    for call in (
        images.stub.CreateImage(image_pb2.CreateImageRequest(parent=parent, image=new), **images.options),
        images.stub.GetImage(image_pb2.GetImageRequest(name=name), **images.options),
        images.stub.ListImages(image_pb2.ListImagesRequest(parent=parent), **images.options),
        images.stub.DeleteImage(image_pb2.DeleteImageRequest(name=name), **images.options),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

"""Hosts fill images: they send what lacks, any replica knows it, and the commit makes the image ACTIVE."""

import uuid

import pytest
from remuda.image.v1 import image_pb2, source_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId
from remuda_core.images.chunks import CHUNK_BYTES
from remuda_core.images.upload import ChunkUploader
from remuda_image_store.testing import Cloud, Sample, cut, noise

CRASH = source_pb2.ImageSource.CONSISTENCY_CRASH


@pytest.fixture
def host() -> HostId:
    return HostId(str(uuid.uuid4()))


async def based(cloud: Cloud, address: str, disk: bytes) -> Sample:
    """An image that a client has uploaded."""
    sample = await cloud.create(disk)
    await (await cloud.images(address)).upload(sample)
    return sample


async def test_only_what_no_readable_image_has_is_sent_and_the_image_is_the_disk(
    cloud: Cloud, host: HostId
) -> None:
    address = await cloud.serve()
    base_disk = noise(1, 2 * CHUNK_BYTES) + bytes(CHUNK_BYTES) + noise(2, CHUNK_BYTES + 512)
    base = await based(cloud, address, base_disk)
    disk = noise(3, CHUNK_BYTES) + base_disk[CHUNK_BYTES : 4 * CHUNK_BYTES] + b"x" * CHUNK_BYTES + b"end"
    blank = await cloud.blank()
    grant = cloud.grant(host, base.id, fills=blank)
    uploader = ChunkUploader([await cloud.chunks(address, host)], image_id=blank.id, grant=grant)
    manifest, chunks = cut(disk)
    lacking = await uploader.lacking(manifest.digests)
    assert lacking == {manifest.digests[0], *manifest.digests[4:]}
    written = await uploader.write([(digest, chunks[digest]) for digest in lacking])
    assert CHUNK_BYTES <= written.stored_bytes == written.sent_bytes < CHUNK_BYTES + 2000
    assert await uploader.lacking(manifest.digests) == set()
    counts = source_pb2.TransferCounts(disk_bytes=len(disk), sent_bytes=written.sent_bytes)
    answer = await uploader.commit(manifest, consistency=CRASH, counts=counts)
    assert answer.stored_bytes == written.stored_bytes
    assert await uploader.commit(manifest, consistency=CRASH, counts=counts) == answer
    record = await cloud.record(blank)
    assert record is not None
    assert record.state == image_pb2.Image.STATE_ACTIVE
    assert (record.virtual_bytes, record.stored_bytes) == (len(disk), written.stored_bytes)
    assert record.manifest_digest == answer.manifest_digest
    assert record.source.consistency == CRASH
    assert record.source.instance
    assert record.source.counts.stored_bytes == written.stored_bytes
    assert await (await cloud.images(address)).download(blank) == disk
    assert cloud.blobs("uploads") == set()


async def test_a_commit_that_names_what_was_not_sent_is_incomplete_until_it_is_sent(
    cloud: Cloud, host: HostId
) -> None:
    address = await cloud.serve()
    blank = await cloud.blank()
    uploader = ChunkUploader(
        [await cloud.chunks(address, host)], image_id=blank.id, grant=cloud.grant(host, fills=blank)
    )
    manifest, chunks = cut(noise(4, 3 * CHUNK_BYTES))
    first, *others = chunks.items()
    await uploader.write([first])
    with pytest.raises(RemudaError) as caught:
        await uploader.commit(manifest, consistency=CRASH, counts=source_pb2.TransferCounts())
    assert caught.value.reason is Reason.IMAGE_INCOMPLETE
    assert caught.value.metadata["lacking"] == "2"
    assert await uploader.lacking(manifest.digests) == {digest for digest, _ in others}
    await uploader.write(others)
    answer = await uploader.commit(manifest, consistency=CRASH, counts=source_pb2.TransferCounts())
    assert answer.stored_bytes == 3 * CHUNK_BYTES

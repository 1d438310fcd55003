"""Hosts fill images: they send what lacks, any replica knows it, and the commit makes the image ACTIVE."""

import asyncio
import random
import signal
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from remuda.image.v1 import chunk_pb2, image_pb2, source_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId
from remuda_core.images.chunks import CHUNK_BYTES, Digest, digest_of, encode
from remuda_core.images.fetch import ImageFetcher
from remuda_core.images.manifest import Manifest
from remuda_core.images.upload import ChunkUploader
from remuda_core.testing.etcd import free_ports
from remuda_core.testing.waiting import wait_for
from remuda_image_store.testing import PROJECT, Blank, Cloud, Sample, cut, noise

CRASH = source_pb2.ImageSource.CONSISTENCY_CRASH
MIB = 1 << 20


@pytest.fixture
def host() -> HostId:
    return HostId(str(uuid.uuid4()))


async def based(cloud: Cloud, address: str, disk: bytes) -> Sample:
    """An image that a client has uploaded."""
    sample = await cloud.create(disk)
    await (await cloud.images(address)).upload(sample)
    return sample


async def uploader(
    cloud: Cloud, host: HostId, blank: Blank, *addresses: str, reads: Iterable[ImageId] = ()
) -> ChunkUploader:
    stores = [await cloud.chunks(address, host) for address in addresses]
    grant = cloud.grant(host, *reads, fills=blank)
    # A replica that is asked while it starts, or under load, gets its time.
    return ChunkUploader(stores, image_id=blank.id, grant=grant, tries=30, stall_seconds=5)


async def committed(filler: ChunkUploader, manifest: Manifest) -> chunk_pb2.CommitImageResponse:
    return await filler.commit(manifest, consistency=CRASH, counts=source_pb2.TransferCounts())


async def send(filler: ChunkUploader, disk: bytes) -> Manifest:
    """What lacks of it."""
    manifest, chunks = cut(disk)
    lacking = await filler.lacking(manifest.digests)
    await filler.write([(digest, chunks[digest]) for digest in lacking])
    return manifest


def whole_chunk(data: bytes) -> list[chunk_pb2.WriteChunksRequest]:
    """Its frames, without a grant."""
    return [
        chunk_pb2.WriteChunksRequest(
            digest=digest_of(data),
            data=data[at : at + MIB],
            last=at + MIB == len(data),
            encoding=chunk_pb2.ReadChunksResponse.ENCODING_IDENTITY,
            plain_bytes=len(data),
        )
        for at in range(0, len(data), MIB)
    ]


async def test_only_what_no_readable_image_has_is_sent_and_the_image_is_the_disk(
    cloud: Cloud, host: HostId
) -> None:
    address = await cloud.serve()
    base_disk = noise(1, 2 * CHUNK_BYTES) + bytes(CHUNK_BYTES) + noise(2, CHUNK_BYTES + 512)
    base = await based(cloud, address, base_disk)
    disk = (
        noise(3, CHUNK_BYTES) + base_disk[CHUNK_BYTES : 4 * CHUNK_BYTES] + b"x" * CHUNK_BYTES + b"end." * 128
    )
    blank = await cloud.blank()
    filler = await uploader(cloud, host, blank, address, reads=[base.id])
    manifest, chunks = cut(disk)
    lacking = await filler.lacking(manifest.digests)
    assert lacking == {manifest.digests[0], *manifest.digests[4:]}
    written = await filler.write([(digest, chunks[digest]) for digest in lacking])
    assert CHUNK_BYTES <= written.stored_bytes == written.sent_bytes < CHUNK_BYTES + 2000
    assert await filler.lacking(manifest.digests) == set()
    counts = source_pb2.TransferCounts(disk_bytes=len(disk), sent_bytes=written.sent_bytes)
    then = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
    answer = await filler.commit(manifest, consistency=CRASH, counts=counts, snapshot_time=then)
    assert answer.stored_bytes == written.stored_bytes
    assert await filler.commit(manifest, consistency=CRASH, counts=counts, snapshot_time=then) == answer
    image = await cloud.record(blank)
    assert image is not None
    assert image.state == image_pb2.Image.STATE_ACTIVE
    assert (image.virtual_bytes, image.stored_bytes) == (len(disk), written.stored_bytes)
    assert image.manifest_digest == answer.manifest_digest
    assert image.source.consistency == CRASH
    assert image.source.instance
    assert image.source.snapshot_time.ToDatetime(tzinfo=UTC) == then
    assert image.source.counts.stored_bytes == written.stored_bytes
    assert image.source.counts.disk_bytes == len(disk)
    assert await (await cloud.images(address)).download(blank) == disk
    assert cloud.blobs("uploads") == set()


@pytest.mark.parametrize("seed", range(4))
async def test_any_sparse_disk_over_any_base_comes_back_bit_for_bit(
    cloud: Cloud, host: HostId, tmp_path: Path, seed: int
) -> None:
    address, rng = await cloud.serve(), random.Random(seed)
    base_disk, disk = random_disks(rng)
    base = await based(cloud, address, bytes(base_disk))
    blank = await cloud.blank()
    filler = await uploader(cloud, host, blank, address, reads=[base.id])
    answer = await committed(filler, await send(filler, disk))
    assert await (await cloud.images(address)).download(blank) == disk
    path = await ImageFetcher([await cloud.chunks(address, host)], owner=host).fetch(
        image_id=blank.id,
        manifest_digest=Digest(bytes.fromhex(answer.manifest_digest)),
        grant=cloud.grant(host, blank.id),
        directory=tmp_path / "bases",
    )
    assert path.read_bytes() == disk
    ours, theirs = cut(disk)[1], cut(base_disk)[1]
    assert answer.stored_bytes == sum(
        len(encode(data).data) for digest, data in ours.items() if digest not in theirs
    )


def random_disks(rng: random.Random) -> tuple[bytes, bytes]:
    """A base, and a larger disk over it with some places overwritten, some with zeros."""
    size = 512 * rng.randrange(1, 5 * CHUNK_BYTES // 512)
    base = bytearray(size)
    for _ in range(rng.randrange(4)):
        scribble(rng, base)
    disk = base + bytes(rng.choice((0, 512, CHUNK_BYTES, CHUNK_BYTES + 512)))
    for _ in range(rng.randrange(5)):
        scribble(rng, disk)
    return bytes(base), bytes(disk)


def scribble(rng: random.Random, disk: bytearray) -> None:
    at = rng.randrange(len(disk))
    length = min(rng.choice((1, 4096, MIB, CHUNK_BYTES, 2 * CHUNK_BYTES)), len(disk) - at)
    kind = rng.choice(("zeros", "noise", "text"))
    disk[at : at + length] = {
        "zeros": bytes(length),
        "noise": rng.randbytes(length),
        "text": (b"remuda " * (length // 7 + 1))[:length],
    }[kind]


async def test_a_commit_that_names_what_was_not_sent_is_incomplete_until_it_is_sent(
    cloud: Cloud, host: HostId
) -> None:
    blank = await cloud.blank()
    filler = await uploader(cloud, host, blank, await cloud.serve())
    manifest, chunks = cut(noise(4, 3 * CHUNK_BYTES))
    first, *others = chunks.items()
    await filler.write([first])
    with pytest.raises(RemudaError) as caught:
        await committed(filler, manifest)
    assert caught.value.reason is Reason.IMAGE_INCOMPLETE
    assert caught.value.metadata["lacking"] == "2"
    assert await filler.lacking(manifest.digests) == {digest for digest, _ in others}
    await filler.write(others)
    assert (await committed(filler, manifest)).stored_bytes == 3 * CHUNK_BYTES


async def test_what_one_replica_has_taken_every_other_one_knows(cloud: Cloud, host: HostId) -> None:
    addresses = [await cloud.serve() for _ in range(3)]
    blank = await cloud.blank()
    fillers = [await uploader(cloud, host, blank, address) for address in addresses]
    disk = noise(5, 5 * CHUNK_BYTES)
    manifest, chunks = cut(disk)
    for index, chunk in enumerate(chunks.items()):
        await fillers[index % 3].write([chunk])
        known = set(manifest.digests[: index + 1])
        for filler in fillers:
            assert await filler.lacking(manifest.digests) == set(manifest.digests) - known
    answers = await asyncio.gather(*(committed(filler, manifest) for filler in fillers))
    assert {answer.manifest_digest for answer in answers} == {answers[0].manifest_digest}
    assert {answer.stored_bytes for answer in answers} == {5 * CHUNK_BYTES}
    assert await (await cloud.images(addresses[0])).download(blank) == disk


async def test_a_chunk_that_has_vanished_is_asked_for_again(cloud: Cloud, host: HostId) -> None:
    address = await cloud.serve()
    base_disk = noise(6, CHUNK_BYTES)
    base, blank = await based(cloud, address, base_disk), await cloud.blank()
    filler = await uploader(cloud, host, blank, address, reads=[base.id])
    disk = base_disk + noise(7, CHUNK_BYTES)
    manifest = await send(filler, disk)
    backend = cloud.directory / "backend/chunks"
    for digest in manifest.digests:
        (backend / digest.hex()[:2] / digest.hex()).unlink()
    with pytest.raises(RemudaError) as caught:
        await committed(filler, manifest)
    assert caught.value.reason is Reason.IMAGE_INCOMPLETE
    assert caught.value.metadata["lacking"] == "2"
    image = await cloud.record(blank)
    assert image is not None
    assert image.state == image_pb2.Image.STATE_PENDING
    assert await filler.lacking(manifest.digests) == set(manifest.digests)
    assert await send(filler, disk) == manifest
    # What the base has is not charged, though it had to be sent.
    assert (await committed(filler, manifest)).stored_bytes == CHUNK_BYTES
    assert await (await cloud.images(address)).download(blank) == disk


async def test_an_image_that_is_not_readable_any_more_makes_nothing_known(cloud: Cloud, host: HostId) -> None:
    address = await cloud.serve()
    disks = [noise(seed, CHUNK_BYTES) for seed in (8, 9, 10, 11)]
    kept, gone, damaged, unfinished = [await based(cloud, address, disk) for disk in disks[:3]] + [
        await cloud.create(disks[3])
    ]
    await cloud.delete(gone)
    await cloud.wait_gone(gone)
    lost = await cloud.record(damaged)
    assert lost is not None
    digest = lost.manifest_digest
    (cloud.directory / "backend/manifests" / digest[:2] / digest).unlink()
    blank = await cloud.blank()
    reads = [each.id for each in (kept, gone, damaged, unfinished)]
    filler = await uploader(
        cloud, host, blank, await cloud.serve(), reads=[*reads, ImageId(str(uuid.uuid4()))]
    )
    manifest, _ = cut(b"".join(disks))
    assert await filler.lacking(manifest.digests) == set(manifest.digests[1:])


async def usage(cloud: Cloud) -> tuple[int, int]:
    kv = await cloud.etcd.get(cloud.keys.image_usage(PROJECT))
    sums = store_pb2.ImageUsageRecord.FromString(kv.value).charge if kv else store_pb2.ImageCharge()
    return sums.virtual_bytes, sums.stored_bytes


async def test_the_project_is_charged_for_what_was_added_and_gets_it_back(cloud: Cloud, host: HostId) -> None:
    address = await cloud.serve()
    blank = await cloud.blank()
    filler = await uploader(cloud, host, blank, address)
    disk = noise(12, CHUNK_BYTES) + bytes(CHUNK_BYTES)
    manifest = await send(filler, disk)
    before = await usage(cloud)
    await committed(filler, manifest)
    await committed(filler, manifest)
    after = await usage(cloud)
    assert (after[0] - before[0], after[1] - before[1]) == (2 * CHUNK_BYTES, CHUNK_BYTES)
    await cloud.delete(blank)
    await cloud.wait_gone(blank)
    assert await usage(cloud) == before


@pytest.mark.parametrize("limit", ["image_stored_bytes", "image_virtual_bytes"])
async def test_beyond_its_projects_quota_an_image_fails_and_says_why(
    cloud: Cloud, host: HostId, limit: str
) -> None:
    most: Mapping[str, int] = {limit: CHUNK_BYTES}
    quota = store_pb2.QuotaRecord(**most)
    await cloud.etcd.put(cloud.keys.quota(PROJECT), quota.SerializeToString())
    blank = await cloud.blank()
    filler = await uploader(cloud, host, blank, await cloud.serve())
    manifest = await send(filler, noise(13, CHUNK_BYTES + 512))
    before = await usage(cloud)
    with pytest.raises(RemudaError) as caught:
        await committed(filler, manifest)
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert caught.value.metadata["limit"] == limit
    image = await cloud.record(blank)
    assert image is not None
    assert image.state == image_pb2.Image.STATE_FAILED
    assert image.status_message == caught.value.message
    assert await usage(cloud) == before
    assert cloud.blobs("uploads") == set()
    with pytest.raises(RemudaError, match="FAILED: project demo may have") as caught:
        await committed(filler, manifest)
    assert caught.value.reason is Reason.STATE_FORBIDS_ACTION


async def test_an_image_that_is_deleted_while_chunks_arrive_keeps_no_ledger(
    cloud: Cloud, host: HostId
) -> None:
    chunks, blank = await cloud.chunks(await cloud.serve(), host), await cloud.blank()
    call = chunks.WriteChunks()
    head = chunk_pb2.WriteChunksRequest(grant=cloud.grant(host, fills=blank), image_id=blank.id)
    for frame in whole_chunk(noise(14, CHUNK_BYTES)):
        frame.MergeFrom(head)
        await call.write(frame)
        head.Clear()
    # By then the image has been looked at, and was there.
    await wait_for(lambda: cloud.blobs("chunks"), timeout=60)
    await cloud.delete(blank)
    await cloud.wait_gone(blank)
    for frame in whole_chunk(noise(15, CHUNK_BYTES)):
        await call.write(frame)
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert cloud.blobs("uploads") == set()


async def test_a_store_that_is_away_or_stands_still_is_left_for_another_one(
    cloud: Cloud, host: HostId
) -> None:
    stopped, address = cloud.spawn(), await cloud.serve()
    still = await stopped.wait_serving()
    blank, disk = await cloud.blank(), noise(15, 2 * CHUNK_BYTES + 512)
    manifest, chunks = cut(disk)
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    stores = [await cloud.chunks(each, host) for each in (nobody, still, address)]
    grant = cloud.grant(host, fills=blank)
    # One call, so that the connection stands and accepts more when nobody is there to answer.
    await ChunkUploader([stores[1]], image_id=blank.id, grant=grant).lacking(manifest.digests)
    stopped.process.send_signal(signal.SIGSTOP)
    filler = ChunkUploader(stores, image_id=blank.id, grant=grant, tries=30, stall_seconds=2)
    written = await filler.write(list(chunks.items()))
    # What went into the void counts as sent.
    assert written.stored_bytes == len(disk) <= written.sent_bytes
    assert (await committed(filler, manifest)).stored_bytes == len(disk)
    with pytest.raises(RemudaError) as caught:
        await ChunkUploader(stores[:1], image_id=blank.id, grant=grant, tries=2).lacking(manifest.digests)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE


async def test_a_write_that_is_killed_half_way_loses_nothing_that_was_answered(
    cloud: Cloud, host: HostId
) -> None:
    first = cloud.spawn()
    addresses = [await first.wait_serving(), await cloud.serve()]
    blank, disk = await cloud.blank(), noise(16, 5 * CHUNK_BYTES)
    manifest, chunks = cut(disk)
    answered, half, never = list(chunks.items())[:2], list(chunks.items())[2:4], list(chunks.items())[4:]
    filler = await uploader(cloud, host, blank, *addresses)
    await filler.write(answered)
    call = (await cloud.chunks(addresses[0], host)).WriteChunks()
    head = chunk_pb2.WriteChunksRequest(grant=cloud.grant(host, fills=blank), image_id=blank.id)
    for _, data in half:
        for frame in whole_chunk(data):
            frame.MergeFrom(head)
            await call.write(frame)
            head.Clear()
    await wait_for(lambda: len(cloud.blobs("chunks")) == 4, timeout=60)
    first.kill()
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    assert await filler.lacking(manifest.digests) == dict([*half, *never]).keys()
    assert await send(filler, disk) == manifest
    await committed(filler, manifest)
    assert await (await cloud.images(addresses[1])).download(blank) == disk


@pytest.mark.parametrize("moment", ["its manifest is there", "it is PENDING"])
async def test_a_commit_that_is_killed_is_finished_by_another_replica(
    cloud: Cloud, host: HostId, moment: str
) -> None:
    victim, address = cloud.spawn(), await cloud.serve()
    blank, disk = await cloud.blank(), noise(17, 2 * CHUNK_BYTES)
    filler = await uploader(cloud, host, blank, await victim.wait_serving(), address)
    manifest = await send(filler, disk)

    async def comes() -> bool:
        image = await cloud.record(blank)
        assert image is not None
        # It may be past the moment when it is looked at: then the kill comes later, and nothing else differs.
        return {
            "its manifest is there": bool(cloud.blobs("manifests")),
            "it is PENDING": image.state != image_pb2.Image.STATE_UPLOADING,
        }[moment]

    commit = asyncio.create_task(committed(filler, manifest))
    await wait_for(comes, timeout=60)
    victim.kill()
    answer = await commit
    assert answer == await committed(filler, manifest)
    assert answer.stored_bytes == len(disk)
    assert await usage(cloud) == (len(disk), len(disk))
    assert await (await cloud.images(address)).download(blank) == disk
    assert cloud.blobs("uploads") == set()

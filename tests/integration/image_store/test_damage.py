"""Damaged and lost chunks: found, written down, stored again by whoever brings them, made good by hosts."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from remuda.image.v1 import chunk_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId
from remuda_core.images.chunks import CHUNK_BYTES, Digest, Encoding, Stored, digest_of, encode
from remuda_core.images.fetch import ImageFetcher
from remuda_core.rpc.status import from_rpc_error
from remuda_core.testing.waiting import wait_for
from remuda_image_store.testing import Cloud, Images, Sample, noise

SECONDS = 120.0
FRAME_BYTES = 1 << 20


@pytest.fixture
def host() -> HostId:
    return HostId(str(uuid.uuid4()))


def blob_of(cloud: Cloud, digest: Digest) -> Path:
    return cloud.directory / "backend/chunks" / digest.hex()[:2] / digest.hex()


def spoil(path: Path) -> None:
    """One bit, as disks do it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def record_of(cloud: Cloud, digest: Digest) -> store_pb2.DamageRecord | None:
    kv = await cloud.etcd.get(cloud.keys.image_damage(digest.hex()))
    return None if kv is None else store_pb2.DamageRecord.FromString(kv.value)


async def wait_recorded(cloud: Cloud, digest: Digest) -> store_pb2.DamageRecord:
    async def recorded() -> store_pb2.DamageRecord | None:
        return await record_of(cloud, digest)

    return await wait_for(recorded, timeout=SECONDS)


async def wait_sound(cloud: Cloud, digest: Digest) -> None:
    async def sound() -> bool:
        return await record_of(cloud, digest) is None

    await wait_for(sound, timeout=SECONDS)


async def made(cloud: Cloud, images: Images, data: bytes) -> Sample:
    sample = await cloud.create(data)
    await images.upload(sample)
    return sample


def frames(
    grant: chunk_pb2.SignedGrant,
    image: ImageId,
    *chunks: bytes,
    digest: Digest | None = None,
    stored: Stored | None = None,
) -> Iterator[chunk_pb2.RepairChunksRequest]:
    """`digest`: another one than the chunk's; `stored`: another encoding."""
    shown = False
    for chunk in chunks:
        sent = stored or encode(chunk)
        for at in range(0, len(sent.data), FRAME_BYTES):
            yield chunk_pb2.RepairChunksRequest(
                grant=None if shown else grant,
                image_id="" if shown else image,
                digest=digest or digest_of(chunk),
                data=sent.data[at : at + FRAME_BYTES],
                last=at + FRAME_BYTES >= len(sent.data),
                encoding=chunk_pb2.ReadChunksResponse.Encoding.ValueType(sent.encoding),
            )
            shown = True


async def test_a_download_that_meets_damage_has_it_written_down_and_a_host_makes_it_good(
    cloud: Cloud, host: HostId
) -> None:
    address = await cloud.serve()
    images, chunks = await cloud.images(address), await cloud.chunks(address, host)
    disk = noise(1, 2 * CHUNK_BYTES)
    sample, other = await made(cloud, images, disk), await made(cloud, images, noise(2, CHUNK_BYTES))
    chunk, sound = disk[:CHUNK_BYTES], disk[CHUNK_BYTES:]
    digest = digest_of(chunk)
    spoil(blob_of(cloud, digest))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await images.download(sample)
    assert from_rpc_error(caught.value).reason is Reason.DIGEST_MISMATCH
    assert list((await wait_recorded(cloud, digest)).image_ids) == [sample.id]
    # It does not stand in the way of those who bring it.
    await wait_for(lambda: not blob_of(cloud, digest).exists(), timeout=SECONDS)

    async def refused(
        *sent: bytes, grant: chunk_pb2.SignedGrant, image: ImageId, digest: Digest | None = None
    ) -> Reason:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await chunks.RepairChunks(frames(grant, image, *sent, digest=digest), timeout=SECONDS)
        return from_rpc_error(error.value).reason

    grant, foreign = cloud.grant(host, sample.id), cloud.grant(host, other.id)
    assert await refused(chunk, grant=foreign, image=sample.id) is Reason.GRANT_REFUSED
    assert await refused(chunk, grant=foreign, image=other.id) is Reason.INVALID_ARGUMENT
    assert await refused(sound, grant=grant, image=sample.id, digest=digest) is Reason.DIGEST_MISMATCH
    assert await record_of(cloud, digest) is not None
    answer = await chunks.RepairChunks(frames(grant, sample.id, sound, chunk), timeout=SECONDS)
    # The other one was not damaged, and is what it was.
    assert answer.repaired == 1
    await wait_sound(cloud, digest)
    assert await images.download(sample) == disk
    # Sent again because the answer was lost: nothing is left to do.
    again = await chunks.RepairChunks(frames(grant, sample.id, chunk), timeout=SECONDS)
    assert again.repaired == 0


async def test_damage_that_only_a_host_meets_is_written_down_as_well(
    cloud: Cloud, host: HostId, tmp_path: Path
) -> None:
    address = await cloud.serve()
    images = await cloud.images(address)
    disk = noise(5, 3 * CHUNK_BYTES)
    sample = await cloud.create(disk)
    manifest = (await images.upload(sample)).image.manifest_digest
    # Not the first one that the host asks for.
    digest = digest_of(disk[CHUNK_BYTES : 2 * CHUNK_BYTES])
    spoil(blob_of(cloud, digest))
    stub, grant = await cloud.chunks(address, host), cloud.grant(host, sample.id)
    fetching = ImageFetcher([stub], owner=host, tries=2).fetch(
        image_id=sample.id,
        manifest_digest=Digest(bytes.fromhex(manifest)),
        grant=grant,
        directory=tmp_path / "bases",
    )
    with pytest.raises(RemudaError) as caught:
        await fetching
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert list((await wait_recorded(cloud, digest)).image_ids) == [sample.id]


async def test_a_repaired_chunk_takes_no_more_room_than_the_one_that_was_damaged(
    cloud: Cloud, host: HostId
) -> None:
    address = await cloud.serve()
    images, chunks = await cloud.images(address), await cloud.chunks(address, host)
    disk = b"compressible " * 1024
    sample = await made(cloud, images, disk)
    blob = blob_of(cloud, digest_of(disk))
    stored = blob.read_bytes()
    assert len(stored) < len(disk) // 10
    spoil(blob)
    with pytest.raises(grpc.aio.AioRpcError):
        await images.download(sample)
    await wait_recorded(cloud, digest_of(disk))
    await wait_for(lambda: not blob.exists(), timeout=SECONDS)
    plain = Stored(encoding=Encoding.IDENTITY, data=disk)
    sent = frames(cloud.grant(host, sample.id), sample.id, disk, stored=plain)
    assert (await chunks.RepairChunks(sent, timeout=SECONDS)).repaired == 1
    # Under another name, while its own was still being removed.
    (repaired,) = blob.parent.glob(f"{blob.name}*")
    assert repaired.read_bytes() == stored


async def test_the_scrub_finds_damage_and_the_sweep_what_is_lost(cloud: Cloud) -> None:
    cloud.settings = cloud.settings.model_copy(
        update={"scrub_round_seconds": 0.5, "gc_every_seconds": 0.5, "scrub_bytes_per_second": 1e9}
    )
    images = await cloud.images(await cloud.serve())
    disk = noise(3, 3 * CHUNK_BYTES)
    sample = await made(cloud, images, disk)
    first, second, _ = [digest_of(disk[at : at + CHUNK_BYTES]) for at in range(0, len(disk), CHUNK_BYTES)]
    spoil(blob_of(cloud, first))
    blob_of(cloud, second).unlink()
    for digest in (first, second):
        assert list((await wait_recorded(cloud, digest)).image_ids) == [sample.id]
    # Whoever uploads the same content again repairs it as well.
    twin = await made(cloud, images, disk)
    assert await images.download(twin) == await images.download(sample) == disk
    for digest in (first, second):
        await wait_sound(cloud, digest)


async def test_damage_that_no_image_has_any_more_is_forgotten(cloud: Cloud) -> None:
    cloud.settings = cloud.settings.model_copy(
        update={"gc_grace_seconds": 0.3, "gc_every_seconds": 0.3, "scrub_round_seconds": 0.5}
    )
    images = await cloud.images(await cloud.serve())
    disk = noise(4, CHUNK_BYTES)
    sample = await made(cloud, images, disk)
    blob_of(cloud, digest_of(disk)).unlink()
    await wait_recorded(cloud, digest_of(disk))
    await cloud.delete(sample)
    await cloud.wait_gone(sample)
    await wait_sound(cloud, digest_of(disk))

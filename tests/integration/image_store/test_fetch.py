"""Hosts fetch images: with a grant, only what they lack, once, and from whichever replica answers."""

import asyncio
import errno
import signal
import uuid
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from remuda.image.v1 import chunk_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId
from remuda_core.images.base_file import PartialBase
from remuda_core.images.chunks import CHUNK_BYTES, Digest
from remuda_core.images.fetch import FetchProgress, ImageFetcher
from remuda_core.images.manifest import parse
from remuda_core.testing.etcd import free_ports
from remuda_image_store.testing import Cloud, Sample, noise

MIB = 1 << 20


@pytest.fixture
def host() -> HostId:
    return HostId(str(uuid.uuid4()))


@pytest.fixture
def bases(tmp_path: Path) -> Path:
    return tmp_path / "bases"


@pytest.fixture
def disk() -> bytes:
    return noise(1, CHUNK_BYTES) + bytes(2 * CHUNK_BYTES) + noise(2, 2 * CHUNK_BYTES) + b"end" * 512


async def uploaded(cloud: Cloud, address: str, disk: bytes) -> tuple[Sample, Digest]:
    sample = await cloud.create(disk)
    answer = await (await cloud.images(address)).upload(sample)
    return sample, Digest(bytes.fromhex(answer.image.manifest_digest))


async def test_however_many_ask_the_image_is_fetched_once_and_is_the_disk(
    cloud: Cloud, host: HostId, bases: Path, disk: bytes
) -> None:
    address = await cloud.serve()
    sample, digest = await uploaded(cloud, address, disk)
    fetcher = ImageFetcher([await cloud.chunks(address, host)], owner=host)
    seen: list[FetchProgress] = []

    async def fetch() -> Path:
        return await fetcher.fetch(
            image_id=sample.id,
            manifest_digest=digest,
            grant=cloud.grant(host, sample.id),
            directory=bases,
            on_progress=seen.append,
        )

    (base,) = set(await asyncio.gather(*(fetch() for _ in range(5))))
    assert base.read_bytes() == disk
    assert base.stat().st_blocks * 512 < len(disk) - CHUNK_BYTES
    # One start and four chunks: only one of the five has fetched anything.
    assert len(seen) == 5
    assert [step.done_bytes for step in seen] == sorted({step.done_bytes for step in seen})
    assert seen[-1].done_bytes == seen[-1].total_bytes == 3 * CHUNK_BYTES + 1536
    assert seen[-1].received_bytes <= seen[-1].total_bytes


async def test_a_fetch_that_was_cancelled_goes_on_from_what_has_arrived(
    cloud: Cloud, host: HostId, bases: Path, disk: bytes
) -> None:
    address = await cloud.serve()
    sample, digest = await uploaded(cloud, address, disk)
    fetcher = ImageFetcher([await cloud.chunks(address, host)], owner=host)
    grant = cloud.grant(host, sample.id)
    one_chunk = asyncio.Event()

    def note(progress: FetchProgress) -> None:
        if progress.received_bytes:
            one_chunk.set()

    first = asyncio.create_task(
        fetcher.fetch(
            image_id=sample.id, manifest_digest=digest, grant=grant, directory=bases, on_progress=note
        )
    )
    await asyncio.wait_for(one_chunk.wait(), 60)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not list(bases.glob("*.raw"))
    seen: list[FetchProgress] = []
    base = await fetcher.fetch(
        image_id=sample.id, manifest_digest=digest, grant=grant, directory=bases, on_progress=seen.append
    )
    assert seen[0].done_bytes >= CHUNK_BYTES
    assert seen[-1].received_bytes <= seen[-1].total_bytes - CHUNK_BYTES
    assert base.read_bytes() == disk


async def test_what_another_base_on_the_host_has_is_not_fetched(
    cloud: Cloud, host: HostId, bases: Path, disk: bytes
) -> None:
    address = await cloud.serve()
    fetcher = ImageFetcher([await cloud.chunks(address, host)], owner=host)
    seen: list[FetchProgress] = []
    newer = disk[: 4 * CHUNK_BYTES] + noise(9, CHUNK_BYTES)
    for data, directory in ((disk, bases), (newer, bases.with_name("other-pool"))):
        sample, digest = await uploaded(cloud, address, data)
        seen.clear()
        base = await fetcher.fetch(
            image_id=sample.id,
            manifest_digest=digest,
            grant=cloud.grant(host, sample.id),
            directory=directory,
            known=[bases],
            on_progress=seen.append,
        )
        assert base.read_bytes() == data
    assert CHUNK_BYTES <= seen[-1].received_bytes < CHUNK_BYTES + 100
    assert seen[-1].done_bytes == seen[-1].total_bytes == 3 * CHUNK_BYTES


async def test_a_store_that_is_away_is_passed_over(
    cloud: Cloud, host: HostId, bases: Path, disk: bytes
) -> None:
    address = await cloud.serve()
    sample, digest = await uploaded(cloud, address, disk)
    nobody = await cloud.chunks(f"127.0.0.1:{free_ports(1)[0]}", host)
    fetcher = ImageFetcher([nobody, await cloud.chunks(address, host)], owner=host)
    base = await fetcher.fetch(
        image_id=sample.id, manifest_digest=digest, grant=cloud.grant(host, sample.id), directory=bases
    )
    assert base.read_bytes() == disk
    with pytest.raises(RemudaError) as caught:
        await ImageFetcher([nobody], owner=host, tries=2).fetch(
            image_id=sample.id,
            manifest_digest=digest,
            grant=cloud.grant(host, sample.id),
            directory=bases.with_name("empty"),
        )
    assert caught.value.reason is Reason.STORE_UNAVAILABLE


async def test_a_store_that_stands_still_is_left_for_another_one(
    cloud: Cloud, host: HostId, bases: Path, disk: bytes
) -> None:
    address = await cloud.serve()
    sample, digest = await uploaded(cloud, address, disk)
    stopped = cloud.spawn()
    replicas = [await cloud.chunks(each, host) for each in (await stopped.wait_serving(), address)]
    grant = cloud.grant(host, sample.id)
    # One call, so that the connection stands and accepts more when nobody is there to answer.
    await replicas[0].GetManifest(chunk_pb2.GetManifestRequest(grant=grant, image_id=sample.id))
    stopped.process.send_signal(signal.SIGSTOP)
    fetcher = ImageFetcher(replicas, owner=host, stall_seconds=0.5)
    base = await fetcher.fetch(image_id=sample.id, manifest_digest=digest, grant=grant, directory=bases)
    assert base.read_bytes() == disk


async def test_a_full_disk_and_a_file_in_use_are_told_apart_and_leave_no_base(
    cloud: Cloud, host: HostId, bases: Path, disk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = await cloud.serve()
    sample, digest = await uploaded(cloud, address, disk)
    fetcher = ImageFetcher([await cloud.chunks(address, host)], owner=host)

    async def refused() -> Reason:
        with pytest.raises(RemudaError) as caught:
            await fetcher.fetch(
                image_id=sample.id,
                manifest_digest=digest,
                grant=cloud.grant(host, sample.id),
                directory=bases,
            )
        assert not list(bases.glob("*.raw"))
        return caught.value.reason

    answer = await (await cloud.chunks(address, host)).GetManifest(
        chunk_pb2.GetManifestRequest(grant=cloud.grant(host, sample.id), image_id=sample.id)
    )
    bases.mkdir()
    with PartialBase.opened(bases, parse(answer.manifest, digest), digest, owner=host):
        assert await refused() is Reason.STORE_UNAVAILABLE

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PartialBase, "write", full)
    assert await refused() is Reason.DISK_FULL


@pytest.mark.parametrize("kind", ["chunks", "manifests"])
@pytest.mark.parametrize("how", ["damaged", "lost"])
async def test_bytes_that_are_not_what_their_digest_names_never_become_a_base(
    cloud: Cloud, host: HostId, bases: Path, disk: bytes, kind: str, how: str
) -> None:
    address = await cloud.serve()
    sample, digest = await uploaded(cloud, address, disk)
    blob = next(path for path in (cloud.directory / "backend" / kind).rglob("*") if path.is_file())
    if how == "lost":
        blob.unlink()
    else:
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
    fetcher = ImageFetcher([await cloud.chunks(address, host)], owner=host, tries=2)
    with pytest.raises(RemudaError) as caught:
        await fetcher.fetch(
            image_id=sample.id, manifest_digest=digest, grant=cloud.grant(host, sample.id), directory=bases
        )
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert not list(bases.glob("*.raw"))


@pytest.mark.parametrize("case", ["other host", "other image", "expired", "forged", "none"])
async def test_a_host_without_a_fitting_grant_gets_nothing(
    cloud: Cloud, host: HostId, bases: Path, case: str
) -> None:
    address = await cloud.serve()
    sample, digest = await uploaded(cloud, address, noise(3, MIB))
    grant = {
        "other host": cloud.grant(HostId(str(uuid.uuid4())), sample.id),
        "other image": cloud.grant(host, ImageId(str(uuid.uuid4()))),
        "expired": cloud.grant(host, sample.id, seconds=-60),
        "forged": cloud.grant(host, sample.id, key=Ed25519PrivateKey.generate()),
        "none": chunk_pb2.SignedGrant(),
    }[case]
    fetcher = ImageFetcher([await cloud.chunks(address, host)], owner=host)
    with pytest.raises(RemudaError) as refused:
        await fetcher.fetch(image_id=sample.id, manifest_digest=digest, grant=grant, directory=bases)
    assert refused.value.reason is Reason.GRANT_REFUSED
    request = chunk_pb2.ReadChunksRequest(grant=grant, image_id=sample.id, digests=[digest])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (await cloud.chunks(address, host)).ReadChunks(request).read()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_chunk_of_another_image_is_not_given_and_not_told_from_one_that_does_not_exist(
    cloud: Cloud, host: HostId
) -> None:
    address = await cloud.serve()
    mine, _ = await uploaded(cloud, address, noise(4, MIB))
    await uploaded(cloud, address, noise(5, MIB))
    chunks = await cloud.chunks(address, host)
    own = await chunks.GetManifest(
        chunk_pb2.GetManifestRequest(grant=cloud.grant(host, mine.id), image_id=mine.id)
    )
    (mine_digest,) = chunk_pb2.Manifest.FromString(own.manifest).digests
    (foreign,) = cloud.blobs("chunks") - {mine_digest.hex()}
    answers = []
    for digest in (bytes.fromhex(foreign), bytes(32)):
        request = chunk_pb2.ReadChunksRequest(
            grant=cloud.grant(host, mine.id), image_id=mine.id, digests=[digest]
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chunks.ReadChunks(request).read()
        answers.append((caught.value.code(), caught.value.details()))
    assert answers[0] == answers[1]
    assert answers[0][0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_image_that_is_not_active_is_not_fetched(cloud: Cloud, host: HostId) -> None:
    chunks = await cloud.chunks(await cloud.serve(), host)
    sample = await cloud.create(noise(6, MIB))
    nothing = ImageId(str(uuid.uuid4()))
    wanted = {sample.id: grpc.StatusCode.FAILED_PRECONDITION, nothing: grpc.StatusCode.NOT_FOUND}
    for image, code in wanted.items():
        request = chunk_pb2.GetManifestRequest(grant=cloud.grant(host, image), image_id=image)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chunks.GetManifest(request)
        assert caught.value.code() is code

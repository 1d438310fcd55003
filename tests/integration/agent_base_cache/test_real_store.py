"""Launches by real steps of an agent from a real image store: each chunk travels once; repairs go back."""

import asyncio
from pathlib import Path
from typing import Any

from remuda.agent.v1 import agent_pb2 as pb
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_agent.base_cache.offering import ChunkOffers
from remuda_agent.leaders import LeaderGuard
from remuda_core.ids import HostId
from remuda_core.images.base_file import base_path
from remuda_core.images.chunks import CHUNK_BYTES, Digest, digest_of
from remuda_core.images.fetch import ImageFetcher
from remuda_image_store.testing import Cloud, Sample, noise

from tests.integration.image_store.conftest import cloud
from tests.unit.agent_base_cache.conftest import HOST, CachingHost

__all__ = ["cloud"]

LAUNCHES = 10


class Counting(ImageFetcher):
    """Keeps what was asked of the store."""

    def __init__(self, stub: Any) -> None:
        self.read: list[bytes] = []

        class Watched:
            GetManifest = stub.GetManifest

            @staticmethod
            def ReadChunks(request: Any) -> Any:
                self.read.extend(request.digests)
                return stub.ReadChunks(request)

        super().__init__([Watched()], owner=HOST)  # type: ignore[list-item]


async def uploaded(cloud: Cloud, address: str, disk: bytes) -> tuple[Sample, str]:
    sample = await cloud.create(disk)
    answer = await (await cloud.images(address)).upload(sample)
    return sample, answer.image.manifest_digest


async def launching(cloud: Cloud, host: CachingHost, guests: range, sample: Sample, manifest: str) -> None:
    work = pb.EnsureBaseImage(
        image_id=sample.id,
        manifest_digest=manifest,
        pool="local",
        grant=cloud.grant(HOST, sample.id),
    )
    await asyncio.gather(*(host.step(guest, "base", ensure_base_image=work) for guest in guests))


async def test_ten_launches_at_once_read_each_chunk_once_and_a_second_image_only_what_is_new(
    cloud: Cloud, tmp_path: Path
) -> None:
    address = await cloud.serve()
    disk = noise(1, CHUNK_BYTES) + bytes(CHUNK_BYTES) + noise(2, 2 * CHUNK_BYTES)
    newer = disk[: 3 * CHUNK_BYTES] + noise(3, CHUNK_BYTES)
    fetcher = Counting(await cloud.chunks(address, HostId(HOST)))
    root = tmp_path / "pool"
    root.mkdir()
    host = await CachingHost(root=root, bound=1 << 40, shelf=fetcher).restarted()  # type: ignore[arg-type]

    first, manifest = await uploaded(cloud, address, disk)
    await launching(cloud, host, range(LAUNCHES), first, manifest)
    assert len(fetcher.read) == len(set(fetcher.read)) == 3
    assert (host.value("misses_total"), host.value("hits_total")) == (1, LAUNCHES - 1)
    base = base_path(host.pool.bases, Digest(bytes.fromhex(manifest)))
    assert base.read_bytes() == disk

    second, manifest = await uploaded(cloud, address, newer)
    await launching(cloud, host, range(LAUNCHES, 2 * LAUNCHES), second, manifest)
    assert len(fetcher.read) == len(set(fetcher.read)) == 4
    assert base_path(host.pool.bases, Digest(bytes.fromhex(manifest))).read_bytes() == newer


async def test_a_lost_chunk_is_made_good_out_of_the_cache_and_a_damaged_one_there_is_not_offered(
    cloud: Cloud, tmp_path: Path
) -> None:
    address = await cloud.serve()
    disk = noise(4, 2 * CHUNK_BYTES)
    sample, manifest = await uploaded(cloud, address, disk)
    stub = await cloud.chunks(address, HostId(HOST))
    root = tmp_path / "pool"
    root.mkdir()
    host = await CachingHost(root=root, bound=1 << 40, shelf=ImageFetcher([stub], owner=HOST)).restarted()  # type: ignore[arg-type]
    await launching(cloud, host, range(1), sample, manifest)
    base = base_path(host.pool.bases, Digest(bytes.fromhex(manifest)))

    chunks = [disk[:CHUNK_BYTES], disk[CHUNK_BYTES:]]
    digests = [digest_of(chunk) for chunk in chunks]
    for digest in digests:
        blob = cloud.directory / "backend/chunks" / digest.hex()[:2] / digest.hex()
        blob.unlink()
        record = store_pb2.DamageRecord(image_ids=[sample.id])
        await cloud.etcd.put(cloud.keys.image_damage(digest.hex()), record.SerializeToString())
    base.chmod(0o644)
    with base.open("r+b") as file:
        file.seek(CHUNK_BYTES + 5)
        file.write(b"spoilt")

    offers = ChunkOffers(
        pools=host.pools,
        turns=host.turns,
        promises=host.promises,
        leaders=LeaderGuard(tmp_path / "leader"),
        stores=[stub],
    )

    def order(manifest: str) -> pb.OfferChunksRequest:
        return pb.OfferChunksRequest(
            leader=LeaderRef(epoch=1),
            image_id=sample.id,
            manifest_digest=manifest,
            digests=digests,
            grant=cloud.grant(HOST, sample.id),
        )

    assert await offers.offer(order("ab" * 32)) == 0
    assert await offers.offer(order(manifest)) == 1
    left = [await cloud.etcd.get(cloud.keys.image_damage(digest.hex())) for digest in digests]
    assert [one is None for one in left] == [True, False]
    with base.open("r+b") as file:
        file.write(disk)
    assert await offers.offer(order(manifest)) == 1
    assert await (await cloud.images(address)).download(sample) == disk

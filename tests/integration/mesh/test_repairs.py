"""Chunks that rot in the image store: found, told to the leader, made good out of a host's cache."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from google.longrunning import operations_pb2 as lro
from remuda.image.v1 import image_pb2
from remuda.store.v1 import gc_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason
from remuda_core.etcd.model import EventKind
from remuda_core.images.chunks import CHUNK_BYTES, Digest, digest_of
from remuda_core.rpc.status import from_status
from remuda_core.testing.waiting import wait_for

from tests.integration.mesh.conftest import Cluster, Instance, upload

MIB = 1 << 20
WAIT_SECONDS = 150.0
Image = image_pb2.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """An image of three chunks that no other image has."""

    cluster: Cluster
    image: Image
    data: bytes

    @classmethod
    async def uploaded(cls, cluster: Cluster, name: str) -> "Disk":
        data = random.Random(name).randbytes(2 * CHUNK_BYTES + MIB)
        image = await upload(cluster.alice, cluster.mesh, name, data)
        return cls(cluster=cluster, image=image, data=data)

    def digest(self, index: int) -> Digest:
        return digest_of(self.data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])

    def rot(self, index: int) -> None:
        """One bit of the chunk's blob, as disks do it."""
        digest = self.digest(index).hex()
        path = self.cluster.mesh.directory / "images/chunks" / digest[:2] / digest
        blob = bytearray(path.read_bytes())
        blob[len(blob) // 2] ^= 1
        path.write_bytes(blob)

    def base(self, host: str) -> Path:
        """Where that host's cache has it, if it does."""
        return self.cluster.mesh.hosts[host].pool / "base" / f"{self.image.manifest_digest}.raw"

    async def download(self) -> bytes:
        disk = bytearray()
        request = image_pb2.DownloadImageRequest(name=self.image.name)
        async for frame in self.cluster.alice.images.DownloadImage(request):
            disk += frame.data or bytes(frame.zero_bytes)
        return bytes(disk)


@dataclass(slots=True, kw_only=True)
class Damage:
    """What etcd has said of damaged chunks since the test began, by digest."""

    cluster: Cluster
    images: dict[str, set[str]] = field(default_factory=dict)
    """Images that were written down with each chunk."""
    struck_off: set[str] = field(default_factory=set)

    @classmethod
    @asynccontextmanager
    async def watched(cls, cluster: Cluster) -> AsyncIterator["Damage"]:
        async def nothing() -> int | None:
            page = await cluster.etcd.range_prefix(cluster.keys.all_image_damage)
            return None if page.kvs else page.revision

        revision = await wait_for(nothing, timeout=WAIT_SECONDS, last_status=cluster.mesh.log_tails)
        damage = cls(cluster=cluster)
        task = asyncio.create_task(damage._follow(revision + 1))
        try:
            yield damage
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self, revision: int) -> None:
        prefix = self.cluster.keys.all_image_damage
        async with self.cluster.etcd.watch_prefix(prefix, start_revision=revision) as watch:
            async for batch in watch:
                for event in batch.events:
                    digest = event.kv.key.removeprefix(prefix)
                    if event.kind is EventKind.DELETE:
                        self.struck_off.add(digest)
                    else:
                        record = store_pb2.DamageRecord.FromString(event.kv.value)
                        self.images.setdefault(digest, set()).update(record.image_ids)
                        self.struck_off.discard(digest)

    async def until_repaired(self, *digests: Digest) -> None:
        wanted = {digest.hex() for digest in digests}
        await wait_for(
            lambda: self.struck_off >= wanted,
            timeout=WAIT_SECONDS,
            last_status=lambda: f"{self}\n{self.cluster.mesh.log_tails()}",
        )


async def scrubbed(cluster: Cluster) -> None:
    """A round is over, and the next one is not due for days."""

    async def over() -> bool:
        kv = await cluster.etcd.get(cluster.keys.gc_scrubbed)
        return kv is not None and gc_pb2.ScrubRecord.FromString(kv.value).next_shard == 0

    await wait_for(over, timeout=WAIT_SECONDS, last_status=cluster.mesh.log_tails)


async def scrub(cluster: Cluster) -> None:
    """Lets the next round begin. Nobody writes the record between two rounds."""
    await scrubbed(cluster)
    await cluster.etcd.delete(cluster.keys.gc_scrubbed)


def counted(cluster: Cluster, service: str, metric: str) -> float:
    text = cluster.mesh.http(service, "/metrics")
    found = re.search(rf"^{metric} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"{service} has no {metric}"
    return float(found[1])


async def test_what_rots_is_found_by_the_scrub_and_made_good_out_of_a_hosts_cache(
    cluster: Cluster,
) -> None:
    disk = await Disk.uploaded(cluster, "rotting")
    guest = await cluster.launch("web", host="alpha", image=disk.image.name)
    assert disk.base("alpha").read_bytes() == disk.data
    rotten = (disk.digest(0), disk.digest(2))
    await scrubbed(cluster)
    before = counted(cluster, "image-store", "remuda_image_damage_repaired_total")
    async with Damage.watched(cluster) as damage:
        disk.rot(0)
        disk.rot(2)
        await scrub(cluster)
        await damage.until_repaired(*rotten)
    assert damage.images == {digest.hex(): {disk.image.uid} for digest in rotten}
    assert await disk.download() == disk.data
    # By hosts, and not by an upload of the same content.
    assert counted(cluster, "image-store", "remuda_image_damage_repaired_total") >= before + len(rotten)
    assert (await cluster.get(guest.name)).state == Instance.STATE_RUNNING
    await cluster.delete(guest.name)
    await cluster.delete_image(disk.image.name)


async def test_a_launch_that_meets_damage_has_it_made_good_out_of_another_hosts_cache(
    cluster: Cluster,
) -> None:
    disk = await Disk.uploaded(cluster, "bitten")
    await cluster.launch("here", host="alpha", image=disk.image.name)
    # Nobody else looks: a round of the scrub would find it as well.
    await scrubbed(cluster)
    async with Damage.watched(cluster) as damage:
        disk.rot(1)
        created = await cluster.create("there", host="beta", image=disk.image.name)
        first = await cluster.ended(created, timeout=WAIT_SECONDS)
        await damage.until_repaired(disk.digest(1))
    assert damage.images == {disk.digest(1).hex(): {disk.image.uid}}
    await _whole_on_beta(cluster, disk, first)
    await cluster.delete_all()
    await cluster.delete_image(disk.image.name)


async def _whole_on_beta(cluster: Cluster, disk: Disk, first: lro.Operation) -> None:
    """The launch waits a while for the repair; where it came too late, another one has its result."""
    if first.HasField("error"):
        assert from_status(first.error).reason is Reason.DIGEST_MISMATCH
        await cluster.launch("there-again", host="beta", image=disk.image.name)
    assert disk.base("beta").read_bytes() == disk.data

"""Image stores that are killed at any moment: what was acknowledged stays, and nothing else does.

Processes over one backend and one etcd. Uploads of both formats, fills by hosts, removals and garbage
collection go on while replicas are killed with SIGKILL, or stopped and continued after their leases are gone,
at moments that nobody chose. Every client asks another replica then, as the gateway and the agents do.
"""

import asyncio
import random
import signal
import subprocess
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from remuda.image.v1 import image_pb2, source_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import RemudaError
from remuda_core.ids import HostId
from remuda_core.images.chunks import CHUNK_BYTES, digest_of
from remuda_core.images.manifest import build
from remuda_core.images.upload import ChunkUploader
from remuda_core.testing.waiting import wait_for
from remuda_image_store.marking import content_name
from remuda_image_store.testing import QCOW2, RAW, Cloud, Images, Replica, Sample, noise

Image = image_pb2.Image
CRASH = source_pb2.ImageSource.CONSISTENCY_CRASH
SECONDS = 180.0
CLIENTS, IMAGES, LEAST_KILLS = 3, 4, 6
# Of which images are made: they share chunks, so that one's garbage is another's content.
PIECES = [noise(seed, CHUNK_BYTES) for seed in range(6)]


@dataclass(kw_only=True)
class Fleet:
    cloud: Cloud
    replicas: list[Replica] = field(default_factory=list)
    clients: dict[int, Images] = field(default_factory=dict)

    async def start(self) -> None:
        replica = self.cloud.spawn()
        await replica.wait_serving()
        self.clients[replica.port] = await self.cloud.images(replica.address)
        self.replicas.append(replica)

    async def kill_one(self, rng: random.Random) -> None:
        victim = self.replicas.pop(rng.randrange(len(self.replicas)))
        victim.kill()
        await self.start()

    async def stop_one(self, rng: random.Random) -> None:
        """For longer than its leases last."""
        victim = rng.choice(self.replicas)
        victim.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(12.0)
        finally:
            victim.process.send_signal(signal.SIGCONT)

    def any(self, rng: random.Random) -> Images:
        return self.clients[rng.choice(self.replicas).port]


@dataclass(kw_only=True)
class Work:
    """Clients that do not give up, and what they were told."""

    fleet: Fleet
    tmp_path: Path
    acknowledged: dict[str, Sample] = field(default_factory=dict)

    async def upload(self, rng: random.Random, form: "image_pb2.Image.Format.ValueType") -> None:
        disk = b"".join(rng.choices(PIECES, k=2)) + bytes(CHUNK_BYTES)
        made = await self.fleet.cloud.create(disk if form == RAW else self._qcow2(disk), form)
        async with asyncio.timeout(SECONDS):
            while not await self._try(self._upload_once(rng, made)):
                await asyncio.sleep(rng.uniform(0, 0.2))
        self.acknowledged[made.id] = Sample(id=made.id, data=disk)

    async def _upload_once(self, rng: random.Random, made: Sample) -> bool:
        images = self.fleet.any(rng)
        answer = await images.upload(made, start=await images.committed(made))
        assert answer.image.state != Image.STATE_FAILED, answer.image.status_message
        return answer.image.state == Image.STATE_ACTIVE

    async def fill(self, rng: random.Random, host: HostId) -> None:
        """As a snapshot of an agent does."""
        cloud = self.fleet.cloud
        blank, pieces = await cloud.blank(), rng.choices(PIECES, k=3)
        manifest = build(3 * CHUNK_BYTES, [digest_of(piece) for piece in pieces])
        chunks = dict(zip(manifest.digests, pieces, strict=True))

        async def once() -> bool:
            addresses = [replica.address for replica in self.fleet.replicas]
            stores = [await cloud.chunks(address, host) for address in addresses]
            grant = cloud.grant(host, fills=blank)
            filler = ChunkUploader(stores, image_id=blank.id, grant=grant, tries=3, stall_seconds=5)
            lacking = await filler.lacking(manifest.digests)
            await filler.write([(digest, chunks[digest]) for digest in sorted(lacking)])
            await filler.commit(manifest, consistency=CRASH, counts=source_pb2.TransferCounts())
            return True

        async with asyncio.timeout(SECONDS):
            while not await self._try(once()):
                await asyncio.sleep(rng.uniform(0, 0.2))
        self.acknowledged[blank.id] = Sample(id=blank.id, data=b"".join(pieces))

    async def client(self, seed: int) -> None:
        rng, host = random.Random(seed), HostId(str(uuid.uuid4()))
        for _ in range(IMAGES):
            kind = rng.choice(("raw", "qcow2", "fill"))
            if kind == "fill":
                await self.fill(rng, host)
            else:
                await self.upload(rng, RAW if kind == "raw" else QCOW2)
            if rng.random() < 0.5 and self.acknowledged:
                _, sample = self.acknowledged.popitem()
                await self.fleet.cloud.delete(sample)

    async def _try(self, work: Coroutine[Any, Any, bool]) -> bool:
        try:
            return await work
        except (grpc.aio.AioRpcError, RemudaError, asyncio.InvalidStateError):
            # A replica that was killed, or says that another stream goes on.
            return False

    def _qcow2(self, disk: bytes) -> bytes:
        raw, made = (self.tmp_path / f"{uuid.uuid4()}.{kind}" for kind in ("raw", "qcow2"))
        raw.write_bytes(disk)
        command = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(raw), str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return made.read_bytes()


async def test_whatever_is_killed_acknowledged_images_stay_and_nothing_else_does(
    cloud: Cloud, tmp_path: Path
) -> None:
    cloud.settings = cloud.settings.model_copy(
        update={"gc_grace_seconds": 0.5, "gc_every_seconds": 0.5, "metrics_listen": "127.0.0.1:0"}
    )
    fleet, rng = Fleet(cloud=cloud), random.Random(4)
    await asyncio.gather(fleet.start(), fleet.start(), fleet.start())
    work = Work(fleet=fleet, tmp_path=tmp_path)
    clients = asyncio.gather(*(work.client(seed) for seed in range(CLIENTS)))
    kills = 0
    while not clients.done() or kills < LEAST_KILLS:
        await asyncio.wait({clients}, timeout=rng.uniform(0.1, 2.0))
        if kills == 2:
            await fleet.stop_one(rng)
        await fleet.kill_one(rng)
        kills += 1
    await clients
    for sample in work.acknowledged.values():
        assert await fleet.any(rng).download(sample) == sample.data
    await _until_nothing_is_deleting(cloud)
    for replica in fleet.replicas:
        replica.kill()

    async def nobody_sweeps() -> bool:
        return await cloud.etcd.count(cloud.keys.gc_shards) == 0

    await wait_for(nobody_sweeps, timeout=SECONDS)
    await cloud.collect(passes=3)
    kept = list(work.acknowledged.values())
    # One blob for each chunk that an image has.
    assert sorted(map(content_name, cloud.blobs("chunks"))) == sorted(cloud.needed(*kept))
    manifests = {record.manifest_digest for sample in kept if (record := await cloud.record(sample))}
    assert sorted(map(content_name, cloud.blobs("manifests"))) == sorted(manifests)
    assert cloud.blobs("uploads") == cloud.blobs("marks") == cloud.blobs(".tmp") == set()
    assert not cloud.lost
    fleet.replicas.clear()
    await fleet.start()
    for sample in kept:
        assert await fleet.any(rng).download(sample) == sample.data


async def _until_nothing_is_deleting(cloud: Cloud) -> None:
    async def gone() -> bool:
        kvs = [kv async for page in cloud.etcd.pages(cloud.keys.images) for kv in page.kvs]
        states = [store_pb2.ImageRecord.FromString(kv.value).image.state for kv in kvs]
        return all(state == Image.STATE_ACTIVE for state in states)

    await wait_for(gone, timeout=SECONDS)

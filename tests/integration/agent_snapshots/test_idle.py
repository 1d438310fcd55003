"""A snapshot of a disk that no QEMU has open: real qcow2 files, a fake hypervisor, a store in memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from remuda.agent.v1.agent_pb2 import RunStepRequest, SnapshotDisk
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.operation_pb2 import Progress
from remuda.image.v1.source_pb2 import ImageSource
from remuda_agent.disks.instance_files import PoolInstanceFiles
from remuda_agent.disks.makers import ProgramDiskMaker
from remuda_agent.disks.owner import write_owner
from remuda_agent.disks.pools import Pool, Pools
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor
from remuda_agent.jobs import Job
from remuda_agent.snapshots.keeping import LAST
from remuda_agent.snapshots.moments import Moments
from remuda_agent.snapshots.reading import QemuDiskContents
from remuda_agent.snapshots.step import DiskSnapshots
from remuda_agent.steps.ports import Owner
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId
from remuda_core.images.chunks import CHUNK_BYTES, digest_of
from remuda_core.images.manifest import serialize

from tests.unit.agent_snapshots.stores import MemoryStore, manifest_of

HOST = HostId(str(uuid.uuid4()))
INSTANCE = InstanceId(str(uuid.uuid4()))
OPERATION = OperationId(str(uuid.uuid4()))
MIB = 1 << 20
# The base ends inside a chunk, the disk inside another.
BASE = os.urandom(5 * MIB) + bytes(9 * MIB) + os.urandom(3 * MIB)
DISK_BYTES = 30 * MIB


@dataclass(kw_only=True)
class Host:
    """One host with one disk."""

    pools: Pools
    snapshots: DiskSnapshots
    store: MemoryStore
    disk: Path
    reported: list[Progress] = field(default_factory=list)

    def io(self, *commands: str) -> None:
        arguments = [word for command in commands for word in ("-c", command)]
        subprocess.run(["qemu-io", *arguments, str(self.disk)], check=True, stdout=subprocess.DEVNULL)

    def guest_sees(self) -> bytes:
        raw = self.disk.with_suffix(".expected")
        subprocess.run(["qemu-img", "convert", "-O", "raw", self.disk, raw], check=True)
        return raw.read_bytes()

    def request(self, *, image: str = "image-1", epoch: int = 1) -> RunStepRequest:
        return RunStepRequest(
            key=StepKey(
                operation_id=OPERATION,
                step="disk_read",
                direction=StepKey.DIRECTION_DO,
                instance_id=INSTANCE,
                epoch=epoch,
            ),
            snapshot_disk=SnapshotDisk(
                image_id=image, pool="local", manifest_digest=digest_of(serialize(manifest_of(BASE))).hex()
            ),
        )

    async def take(self, *, image: str = "image-1", epoch: int = 1) -> ImageSource:
        job = Job(name=(OPERATION, "disk_read", 1), instance_id=INSTANCE)
        output = await self.snapshots.take(self.request(image=image, epoch=epoch), job)
        return output.snapshot


@pytest.fixture
def host(tmp_path: Path) -> Host:
    pool = Pool(name="local", path=tmp_path / "pool")
    pool.path.mkdir()
    pools = Pools([pool])
    pools.prepare()
    manifest = serialize(manifest_of(BASE))
    base = pool.bases / f"{digest_of(manifest).hex()}.raw"
    base.write_bytes(BASE)
    base.with_suffix(".manifest").write_bytes(manifest)
    files = PoolInstanceFiles(pools, ProgramDiskMaker())
    paths = files.paths("local", INSTANCE)
    paths.directory.mkdir()
    write_owner(
        paths.directory,
        Owner(instance_id=INSTANCE, host_id=HOST, epoch=Epoch(1), operation_id=OPERATION, role="owner"),
    )
    asyncio.run(ProgramDiskMaker().overlay(paths.disk, base=base, size_bytes=DISK_BYTES))
    store = MemoryStore(known=set(manifest_of(BASE).digests))
    hypervisor = FakeHypervisor(FakeFabric(), "host")
    snapshots = DiskSnapshots(
        hypervisor=hypervisor,
        files=files,
        pools=pools,
        moments=Moments(hypervisor=hypervisor, contents=QemuDiskContents(), directory=tmp_path / "snapshots"),
        uploading=lambda _image, _grant: store,
        host_id=HOST,
    )
    return Host(pools=pools, snapshots=snapshots, store=store, disk=paths.disk)


async def test_the_image_holds_what_the_guest_sees_and_only_touched_chunks_are_read(host: Host) -> None:
    host.io(
        "write -P 7 1M 64k",  # in the base's bytes
        "write -P 9 21M 512",  # beyond the base
        "write -z 14M 1M",  # zeros over the base's last, short chunk
        "discard 5M 64k",
    )
    source = await host.take()
    content = host.guest_sees()
    assert host.store.content(BASE) == content
    assert source.consistency == ImageSource.CONSISTENCY_OFF
    assert source.snapshot_time.ToDatetime().year > 2000
    assert source.counts.disk_bytes == DISK_BYTES
    # 0, 1 (discarded), 3 (zeros), 4 (the base's last), 5
    assert source.counts.touched_bytes == source.counts.read_bytes == 5 * CHUNK_BYTES
    assert source.counts.sent_bytes <= 4 * CHUNK_BYTES
    assert not source.counts.incremental


async def test_a_disk_that_nobody_wrote_to_costs_the_end_of_its_base(host: Host) -> None:
    source = await host.take()
    assert host.store.content(BASE) == host.guest_sees()
    assert source.counts.read_bytes == CHUNK_BYTES  # where the base ends and zeros follow


async def test_without_the_bases_manifest_the_whole_disk_is_read_and_right(host: Host) -> None:
    host.io("write -P 7 1M 64k")
    [manifest] = host.pools.get("local").bases.glob("*.manifest")
    manifest.write_bytes(b"damaged")
    source = await host.take()
    assert source.counts.read_bytes == DISK_BYTES
    assert host.store.content(BASE) == host.guest_sees()


async def test_a_repeated_order_gives_the_moment_that_was_committed(host: Host) -> None:
    host.io("write -P 7 1M 64k")
    first, seen = await host.take(), host.guest_sees()
    host.io("write -P 8 9M 64k")
    again = await host.take()
    assert again == first
    assert host.store.content(BASE) == seen
    other = await host.take(image="image-2")
    assert other.snapshot_time.ToDatetime() > first.snapshot_time.ToDatetime()
    assert host.store.content(BASE) == host.guest_sees()


async def test_an_order_whose_commit_failed_begins_anew_when_the_store_has_forgotten(host: Host) -> None:
    host.io("write -P 7 1M 64k")
    await host.take()
    host.io("write -P 8 9M 64k")
    host.store.chunks.clear()  # the upload was given up meanwhile
    await host.take()
    assert host.store.content(BASE) == host.guest_sees()


async def test_a_disk_that_somebody_writes_is_not_read(host: Host) -> None:
    with subprocess.Popen(  # noqa: ASYNC220
        ["qemu-io", host.disk], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(b"length\n")
        writer.stdin.flush()
        assert writer.stdout.readline()
        with pytest.raises(RemudaError, match="lock") as refused:
            await host.take()
    assert refused.value.reason is Reason.STEP_FAILED
    assert not host.store.committed
    assert not (host.disk.parent / LAST).exists()


async def test_only_the_owner_of_the_disk_reads_it(host: Host) -> None:
    owner = Owner(instance_id=INSTANCE, host_id=HOST, epoch=Epoch(2), operation_id=OPERATION, role="owner")
    write_owner(host.disk.parent, owner)
    with pytest.raises(RemudaError) as stale:
        await host.take(epoch=1)
    assert stale.value.reason is Reason.STALE_EPOCH
    write_owner(host.disk.parent, replace(owner, host_id=HostId(str(uuid.uuid4()))))
    with pytest.raises(RemudaError, match="does not own") as other:
        await host.take(epoch=2)
    assert other.value.reason is Reason.STEP_FAILED

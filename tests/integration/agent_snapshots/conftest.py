"""A host of the lab with one guest of 2 GiB, and DiskSnapshots over its libvirt.

Everything lies below the lab's own directory, which has the same path inside the host and outside.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest
from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1.agent_pb2 import RunStepRequest, SnapshotDisk
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.operation_pb2 import Progress
from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda.image.v1.source_pb2 import ImageSource
from remuda_agent.disks.instance_files import PoolInstanceFiles
from remuda_agent.disks.makers import ProgramDiskMaker
from remuda_agent.disks.owner import write_owner
from remuda_agent.disks.pools import Pool, Pools
from remuda_agent.hypervisor import DomainDescription, DomainNic, Hypervisor
from remuda_agent.hypervisor.libvirt import domain_xml, open_libvirt
from remuda_agent.jobs import Job
from remuda_agent.probe.domain_type import DomainType
from remuda_agent.snapshots.moments import Moments
from remuda_agent.snapshots.reading import QemuDiskContents
from remuda_agent.snapshots.step import DiskSnapshots
from remuda_agent.snapshots.uploading import Uploader
from remuda_agent.steps.ports import InstancePaths, Owner
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId
from remuda_core.images.chunks import CHUNK_BYTES, Digest, chunk_digest, digest_of
from remuda_core.images.manifest import Manifest, serialize
from remuda_core.testing.waiting import wait_for
from remuda_lab.guest import ConfigDrive, GuestImage, Nic, write_config_drive
from remuda_lab.guest.disk import partition_entry
from remuda_lab.guest_view import GuestView
from remuda_lab.lab import Lab
from remuda_lab.testing import guest_image, running_lab

__all__ = ["guest_image"]

MIB = 1 << 20
DISK_BYTES = 2 << 30
FILES_START, FILES_BYTES = 48 * MIB, 112 * MIB
"""A third partition, with room for a large file."""
HOST = HostId(str(uuid.uuid4()))
OPERATION = OperationId(str(uuid.uuid4()))
TCG = DomainType(name="qemu", reason="the lab's guests are small", proven=True)
_PLATFORM = domain_xml.Platform(
    domain_type="qemu", architecture="x86_64", emulator="/usr/bin/qemu-system-x86_64"
)

Quiesce = SnapshotInstanceRequest.Quiesce


@dataclass(kw_only=True)
class Guest:
    """It runs when a test begins, and whatever a test does to it."""

    lab: Lab
    pools: Pools
    paths: InstancePaths
    description: DomainDescription
    base: Path
    manifest: Manifest
    uri: str
    reported: list[Progress] = field(default_factory=list)

    def rebuild(self) -> None:
        """A new disk over the same base; whatever is known of the old one is left lying there."""
        if self.domain().isActive():
            self.domain().destroy()
        self.paths.disk.unlink()
        asyncio.run(ProgramDiskMaker().overlay(self.paths.disk, base=self.base, size_bytes=DISK_BYTES))

    @property
    def instance(self) -> InstanceId:
        return self.description.instance_id

    @property
    def view(self) -> GuestView:
        return GuestView(init=self.lab.fabric().init, address=ADDRESS)

    def domain(self) -> Any:
        return libvirt.open(self.uri).lookupByUUIDString(self.instance)

    def wait_up(self) -> None:
        """Running, and its agent answers."""
        domain = self.domain()
        if not domain.isActive():
            domain.create()
        if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            domain.resume()
        self.view.wait_up(timeout=120)
        asyncio.run(wait_for(self.greets, timeout=60, last_status=lambda: "the guest agent is silent"))

    def greets(self) -> bool:
        try:
            self.agent("guest-ping")
        except libvirt.libvirtError:
            return False
        return True

    def run(self, script: str) -> str:
        """In the guest, to its end."""
        argument = {"path": "/bin/sh", "arg": ["-c", f"{{ {script}; }} 2>&1"], "capture-output": True}
        pid = self.agent("guest-exec", argument)["pid"]
        answer: dict[str, Any] = {}

        def exited() -> bool:
            answer.update(self.agent("guest-exec-status", {"pid": pid}))
            return bool(answer["exited"])

        asyncio.run(wait_for(exited, timeout=180, last_status=lambda: f"still running: {script}"))
        said = base64.b64decode(answer.get("out-data", "")).decode(errors="replace")
        assert answer["exitcode"] == 0, said
        return said

    def agent(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        words = {"execute": command} | ({"arguments": arguments} if arguments else {})
        return json.loads(libvirt_qemu.qemuAgentCommand(self.domain(), json.dumps(words), 5, 0))["return"]

    @asynccontextmanager
    async def snapshots(self, uploader: Uploader) -> AsyncIterator[tuple[DiskSnapshots, Hypervisor]]:
        """As an agent has them, started just now."""
        async with open_libvirt(self.uri, TCG) as hypervisor:
            yield (
                DiskSnapshots(
                    hypervisor=hypervisor,
                    files=PoolInstanceFiles(self.pools, ProgramDiskMaker()),
                    pools=self.pools,
                    moments=Moments(
                        hypervisor=hypervisor,
                        contents=QemuDiskContents(),
                        directory=self.lab.paths.root / "sockets",
                    ),
                    uploading=lambda _image, _grant: uploader,
                    host_id=HOST,
                ),
                hypervisor,
            )

    def request(
        self, *, image: str = "", quiesce: Quiesce.ValueType = SnapshotInstanceRequest.QUIESCE_UNSPECIFIED
    ) -> RunStepRequest:
        return RunStepRequest(
            key=StepKey(
                operation_id=OPERATION,
                step="disk_read",
                direction=StepKey.DIRECTION_DO,
                instance_id=self.instance,
                epoch=1,
            ),
            snapshot_disk=SnapshotDisk(
                image_id=image or str(uuid.uuid4()),
                pool="local",
                manifest_digest=digest_of(serialize(self.manifest)).hex(),
                quiesce=quiesce,
                grant=SignedGrant(),
                # A busy machine must not make the difference.
                freeze_limit=Duration(seconds=100),
            ),
        )

    def job(self) -> Job:
        return Job(name=(OPERATION, "disk_read", 1), instance_id=self.instance)

    async def snapshot(
        self,
        uploader: Uploader,
        *,
        image: str = "",
        quiesce: Quiesce.ValueType = SnapshotInstanceRequest.QUIESCE_UNSPECIFIED,
    ) -> ImageSource:
        async with self.snapshots(uploader) as (snapshots, _):
            output = await snapshots.take(self.request(image=image, quiesce=quiesce), self.job())
        assert self.leftovers() == []
        return output.snapshot

    def leftovers(self) -> list[str]:
        """Of backups."""
        found = [path.name for path in self.paths.directory.iterdir() if "scratch" in path.name]
        sockets = self.lab.paths.root / "sockets"
        return found + [path.name for path in sockets.iterdir()] if sockets.exists() else found


ADDRESS = IPv4Address("10.78.0.44")
MAC = "52:54:00:12:99:44"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with running_lab("snapshots", hosts=1) as lab:
        yield lab


@pytest.fixture(scope="session")
def running_guest(lab: Lab, guest_image: GuestImage) -> Guest:
    pool = Pool(name="local", path=lab.paths.root / "pool")
    pool.path.mkdir()
    pools = Pools([pool])
    pools.prepare()
    base, manifest = _base(guest_image.raw, pool.bases)
    instance = InstanceId(str(uuid.uuid4()))
    paths = PoolInstanceFiles(pools, ProgramDiskMaker()).paths("local", instance)
    paths.directory.mkdir()
    owner = Owner(instance_id=instance, host_id=HOST, epoch=Epoch(1), operation_id=OPERATION, role="owner")
    write_owner(paths.directory, owner)
    asyncio.run(ProgramDiskMaker().overlay(paths.disk, base=base, size_bytes=DISK_BYTES))
    nic = Nic(mac=MAC, address=IPv4Interface(f"{ADDRESS}/24"))
    write_config_drive(paths.config_drive, ConfigDrive(uuid=instance, hostname="guest", nics=(nic,)))
    guest = Guest(
        lab=lab,
        pools=pools,
        paths=paths,
        base=base,
        manifest=manifest,
        uri=lab.host("host1").libvirt_uri,
        description=DomainDescription(
            instance_id=instance,
            title="a guest whose disk is read",
            epoch=Epoch(1),
            operation_id=OPERATION,
            vcpus=1,
            memory_mib=96,
            disk=paths.disk,
            config_drive=paths.config_drive,
            console=Path("/var/log/libvirt/qemu") / f"{instance}.console",
            nics=(DomainNic(mac_address=MAC, bridge="br0"),),
        ),
    )
    libvirt.open(guest.uri).defineXML(domain_xml.build(guest.description, _PLATFORM))
    return guest


@pytest.fixture
def guest(running_guest: Guest) -> Guest:
    return ready(running_guest)


@pytest.fixture
def rebuilt_guest(running_guest: Guest) -> Guest:
    """Its disk was never written to before it booted."""
    running_guest.rebuild()
    return ready(running_guest)


def ready(running_guest: Guest) -> Guest:
    running_guest.wait_up()
    running_guest.run(
        "mkdir -p /tmp/files; grep -q /tmp/files /proc/mounts || mount -t ext4 /dev/vda3 /tmp/files"
    )
    return running_guest


def _base(raw: Path, bases: Path) -> tuple[Path, Manifest]:
    """The guest's image with one more partition."""
    draft, files = bases / ".draft", bases / ".files"
    subprocess.run(["cp", "--sparse=always", raw, draft], check=True)
    files.touch()
    with files.open("r+b") as partition:
        partition.truncate(FILES_BYTES)
    mke2fs = shutil.which("mke2fs") or "/sbin/mke2fs"
    # The guest's kernel would write over all of it later, and touch it.
    now = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run([mke2fs, "-q", "-t", "ext4", "-E", now, "-F", files], check=True)
    entry = partition_entry(
        bootable=False, kind=0x83, start_mib=FILES_START // MIB, size_mib=FILES_BYTES // MIB
    )
    with draft.open("r+b") as disk:
        disk.seek(446 + 2 * 16)
        assert disk.read(16) == bytes(16)
        disk.seek(446 + 2 * 16)
        disk.write(entry)
        disk.truncate(FILES_START + FILES_BYTES)
    subprocess.run(
        ["dd", f"if={files}", f"of={draft}", "bs=1M", f"seek={FILES_START // MIB}", "conv=notrunc,sparse"],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    files.unlink()
    manifest = manifest_of_file(draft)
    blob = serialize(manifest)
    base = bases / f"{digest_of(blob).hex()}.raw"
    draft.rename(base)
    base.with_suffix(".manifest").write_bytes(blob)
    return base, manifest


def manifest_of_file(path: Path) -> Manifest:
    """Of a raw file."""
    digests: list[Digest] = []
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            digests.append(chunk_digest(piece))
    return Manifest(virtual_bytes=path.stat().st_size, digests=tuple(digests))


def fsck(raw: Path, *, start: int, length: int) -> str:
    """Of one partition of a raw disk. Raises CalledProcessError with what is wrong in `output`."""
    partition = raw.with_suffix(".partition")
    with raw.open("rb") as disk, partition.open("wb") as file:
        disk.seek(start)
        file.write(disk.read(length))
    program = shutil.which("e2fsck") or "/sbin/e2fsck"
    return subprocess.run([program, "-fn", partition], check=True, capture_output=True, text=True).stdout


def file_in(raw: Path, name: str) -> bytes:
    """A file of the partition that `fsck` has cut out last; empty: there is none of that name."""
    program = shutil.which("debugfs") or "/sbin/debugfs"
    partition = raw.with_suffix(".partition")
    done = subprocess.run([program, "-R", f"cat {name}", partition], check=True, capture_output=True)
    return done.stdout

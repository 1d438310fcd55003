"""What is told of a disk: its header without opening it, its content through qemu-nbd."""

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from remuda_agent.disks.makers import ProgramDiskMaker
from remuda_agent.disks.nbd import content_digest
from remuda_agent.disks.readers import QemuDiskReader
from remuda_core.errors import Reason, RemudaError

SIZE = 9 << 20
"""No multiple of what is read at a time."""
WRITES = ("write -P 7 1M 64k", "write -P 9 8M 512k")


def said(*argv: str | Path) -> str:
    """Standard output of a program that ends at once."""
    return subprocess.check_output(argv, text=True)


@contextmanager
def held_for_writing(disk: Path) -> Iterator[None]:
    with subprocess.Popen(["qemu-io", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(b"length\n")
        writer.stdin.flush()
        assert writer.stdout.readline(), "it has the disk open"
        yield


async def overlay(directory: Path, name: str = "disk.qcow2", *, writes: tuple[str, ...] = WRITES) -> Path:
    base = directory / "base.raw"
    if not base.exists():
        base.write_bytes(b"base" * (1 << 18) + bytes((8 << 20) - (1 << 20)))
    disk = directory / name
    await ProgramDiskMaker().overlay(disk, base=base, size_bytes=SIZE)
    for write in writes:
        said("qemu-io", "-c", write, disk)
    return disk


def guest_sees(disk: Path) -> bytes:
    raw = disk.with_suffix(".raw.expected")
    said("qemu-img", "convert", "-O", "raw", disk, raw)
    return raw.read_bytes()


async def test_the_digest_is_over_what_the_guest_sees_whatever_it_is_made_of(tmp_path: Path) -> None:
    disk = await overlay(tmp_path)
    content = guest_sees(disk)
    assert len(content) == SIZE
    digest = await QemuDiskReader().digest(disk)
    assert digest == hashlib.sha256(content).digest()
    flat = tmp_path / "flat.qcow2"
    said("qemu-img", "convert", "-O", "qcow2", disk, flat)
    assert await QemuDiskReader().digest(flat) == digest
    raw = tmp_path / "flat.img"
    raw.write_bytes(content)
    assert await QemuDiskReader().digest(raw) == digest
    other = await overlay(tmp_path, "other.qcow2", writes=(*WRITES, "write -P 1 3M 512"))
    assert await QemuDiskReader().digest(other) != digest


async def test_a_disk_that_somebody_may_write_is_not_read(tmp_path: Path) -> None:
    disk = await overlay(tmp_path)
    with held_for_writing(disk), pytest.raises(RemudaError, match="lock") as refused:
        await content_digest(disk, image_format="qcow2")
    assert refused.value.reason is Reason.STEP_FAILED
    assert await content_digest(disk, image_format="qcow2")


async def test_a_disk_whose_base_is_gone_is_not_read_and_said_so(tmp_path: Path) -> None:
    disk = await overlay(tmp_path)
    (tmp_path / "base.raw").unlink()
    with pytest.raises(RemudaError, match=r"base\.raw"):
        await content_digest(disk, image_format="qcow2")


async def test_the_header_tells_size_and_base_of_a_disk_in_use_too(tmp_path: Path) -> None:
    disk = await overlay(tmp_path)
    look = QemuDiskReader().look(disk)
    assert (look.virtual_bytes, look.backing) == (SIZE, tmp_path / "base.raw")
    raw = QemuDiskReader().look(tmp_path / "base.raw")
    assert (raw.virtual_bytes, raw.backing) == (8 << 20, None)
    (tmp_path / "short").write_bytes(b"QFI\xfb")
    assert QemuDiskReader().look(tmp_path / "short").backing is None


async def test_nothing_of_a_reading_is_left(tmp_path: Path) -> None:
    disk = await overlay(tmp_path)
    await content_digest(disk, image_format="qcow2")
    assert str(disk) not in said("ps", "-eo", "args")

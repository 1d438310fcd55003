"""qemu-img, mkfs.vfat and mcopy really make what a guest and a migration need."""

import asyncio
import json
import subprocess
import time
from pathlib import Path

import pytest
from remuda_agent.disks.config_drive import SIZE_BYTES
from remuda_agent.disks.makers import ProgramDiskMaker, run
from remuda_core.errors import Reason, RemudaError

FILES = {
    "openstack/latest/meta_data.json": b'{"uuid": "x"}\n',
    "openstack/latest/user_data": b"#!/bin/sh\n" + b"# long\n" * 9000,
}


@pytest.fixture
def maker() -> ProgramDiskMaker:
    return ProgramDiskMaker()


def said(*argv: str | Path) -> bytes:
    """Standard output of a program that ends at once."""
    return subprocess.check_output(argv)


def base_image(directory: Path, size: int) -> Path:
    base = directory / "base.raw"
    with base.open("wb") as file:
        file.truncate(size)
    return base


@pytest.mark.parametrize(("asked", "given"), [(0, 8 << 20), (64 << 20, 64 << 20)])
async def test_an_overlay_has_the_size_asked_for_and_names_its_base_absolutely(
    maker: ProgramDiskMaker, tmp_path: Path, asked: int, given: int
) -> None:
    base, disk = base_image(tmp_path, 8 << 20), tmp_path / "disk.qcow2"
    await maker.overlay(disk, base=base, size_bytes=asked)
    info = json.loads(said("qemu-img", "info", "--output=json", disk))
    assert info["virtual-size"] == given
    assert info["backing-filename"] == str(base)
    assert info["backing-filename-format"] == "raw"


async def test_a_disk_smaller_than_its_image_is_refused_and_not_cut(
    maker: ProgramDiskMaker, tmp_path: Path
) -> None:
    base, disk = base_image(tmp_path, 8 << 20), tmp_path / "disk.qcow2"
    with pytest.raises(RemudaError, match="smaller") as refused:
        await maker.overlay(disk, base=base, size_bytes=4 << 20)
    assert refused.value.reason is Reason.STEP_FAILED
    assert not disk.exists()


async def test_a_missing_base_is_named(maker: ProgramDiskMaker, tmp_path: Path) -> None:
    with pytest.raises(RemudaError, match=r"nothing\.raw") as refused:
        await maker.overlay(tmp_path / "disk.qcow2", base=tmp_path / "nothing.raw", size_bytes=0)
    assert refused.value.reason is Reason.STEP_FAILED


async def test_a_config_drive_has_its_label_and_files(maker: ProgramDiskMaker, tmp_path: Path) -> None:
    drive = tmp_path / "config.img"
    await maker.config_drive(drive, files=FILES, volume_id=0x1234)
    assert drive.stat().st_size == SIZE_BYTES
    assert b"config-2" in said("mlabel", "-s", "-i", drive)
    for name, content in FILES.items():
        assert said("mtype", "-i", drive, f"::/{name}") == content


async def test_a_config_drive_is_the_same_byte_for_byte_whenever_it_is_made(
    maker: ProgramDiskMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await maker.config_drive(tmp_path / "one", files=FILES, volume_id=7)
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    # FAT keeps even seconds: the clock has to have moved on by more than one.
    await asyncio.to_thread(time.sleep, 2.1)
    await maker.config_drive(tmp_path / "two", files=FILES, volume_id=7)
    await maker.config_drive(tmp_path / "other", files=FILES, volume_id=8)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").read_bytes() != (tmp_path / "other").read_bytes()


async def test_more_than_a_drive_holds_is_disk_full(maker: ProgramDiskMaker, tmp_path: Path) -> None:
    with pytest.raises(RemudaError) as refused:
        await maker.config_drive(tmp_path / "c", files={"big": bytes(SIZE_BYTES)}, volume_id=1)
    assert refused.value.reason is Reason.DISK_FULL


async def test_a_program_that_is_missing_or_fails_is_named_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(RemudaError, match="no-such-program is not installed"):
        await run(["no-such-program"])
    with pytest.raises(RemudaError, match=r"qemu-img failed: .*missing\.qcow2") as refused:
        await run(["qemu-img", "info", str(tmp_path / "missing.qcow2")])
    assert refused.value.reason is Reason.STEP_FAILED


async def test_a_cancelled_program_is_ended() -> None:
    task = asyncio.create_task(run(["sleep", "4711"]))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert b"sleep 4711" not in said("ps", "-eo", "args")

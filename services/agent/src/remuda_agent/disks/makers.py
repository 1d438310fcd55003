"""Who makes the files of disks: QEMU's and mtools' programs, or, below the fake hypervisor, nobody."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from remuda_core.errors import Reason, RemudaError

from remuda_agent.disks.config_drive import LABEL, SIZE_BYTES

PROGRAM_SECONDS = 120.0
_EPOCH_OF_FAT = 315532800  # 1980-01-01: the earliest time that FAT knows
_SBIN = os.pathsep.join(("/usr/sbin", "/sbin"))


class DiskMaker(Protocol):
    """Makes one file at a path where there is none. Raises DISK_FULL, STEP_FAILED."""

    async def overlay(self, path: Path, *, base: Path, size_bytes: int) -> None:
        """A disk of ``size_bytes`` (0: like its base) that differs from ``base`` in nothing yet."""

    async def config_drive(self, path: Path, *, files: Mapping[str, bytes], volume_id: int) -> None:
        """A vfat image with these files; the same arguments give the same bytes."""


class ProgramDiskMaker:
    """qemu-img, mkfs.vfat and mcopy: no root, no mounts, no loop devices."""

    async def overlay(self, path: Path, *, base: Path, size_bytes: int) -> None:
        if not base.is_file():
            raise RemudaError(Reason.STEP_FAILED, f"the base image {base} is not on this host")
        if 0 < size_bytes < base.stat().st_size:
            # qemu-img would cut the image off without a word.
            raise RemudaError(
                Reason.STEP_FAILED, f"a disk of {size_bytes} bytes is smaller than its image {base}"
            )
        size = str(size_bytes) if size_bytes else str(base.stat().st_size)
        await run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(path), size])

    async def config_drive(self, path: Path, *, files: Mapping[str, bytes], volume_id: int) -> None:
        with tempfile.TemporaryDirectory(prefix="remuda-config-drive-") as scratch:
            roots = await asyncio.to_thread(_lay_down, Path(scratch), files)
            with path.open("xb") as image:
                image.truncate(SIZE_BYTES)
            await run(["mkfs.vfat", "--invariant", "-i", f"{volume_id:08x}", "-n", LABEL, str(path)])
            await run(["mcopy", "-s", "-m", "-i", str(path), *map(str, roots), "::/"])


class PretendingDiskMaker:
    """Small files that say what they stand for: the fake hypervisor never opens them."""

    async def overlay(self, path: Path, *, base: Path, size_bytes: int) -> None:
        path.write_text(f"{size_bytes} bytes over {base}\n")

    async def config_drive(self, path: Path, *, files: Mapping[str, bytes], volume_id: int) -> None:
        path.write_bytes(b"".join(files.values()))


async def run(argv: Sequence[str]) -> None:
    """Run a program to its end. Raises DISK_FULL or STEP_FAILED with its words; killed when cancelled."""
    program = shutil.which(argv[0]) or shutil.which(argv[0], path=_SBIN)
    if program is None:
        raise RemudaError(Reason.STEP_FAILED, f"{argv[0]} is not installed on this host")
    process = await asyncio.create_subprocess_exec(
        program,
        *argv[1:],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # mcopy dates directories by the clock otherwise, in local time.
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC", "SOURCE_DATE_EPOCH": str(_EPOCH_OF_FAT)},
    )
    try:
        async with asyncio.timeout(PROGRAM_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise RemudaError(
            Reason.STEP_FAILED, f"{argv[0]} did not end within {PROGRAM_SECONDS:g} s"
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        words = output.decode(errors="replace").strip()
        full = "No space left" in words or "Disk full" in words
        reason = Reason.DISK_FULL if full else Reason.STEP_FAILED
        raise RemudaError(reason, f"{argv[0]} failed: {words or f'exit status {process.returncode}'}")


def _lay_down(root: Path, files: Mapping[str, bytes]) -> list[Path]:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for path in root.rglob("*"):
        os.utime(path, (_EPOCH_OF_FAT, _EPOCH_OF_FAT))
    return sorted(root.iterdir())

"""What can be told of a disk's file: its size and what lies under it without opening it, and its content."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from remuda_agent.disks.nbd import content_digest

_MAGIC = b"QFI\xfb"
_HEADER_BYTES = 32
_LONGEST_NAME = 1023
"""Of a backing file, by the format's own rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLook:
    """Of one file. ``virtual_bytes`` 0: unknown."""

    virtual_bytes: int = 0
    backing: Path | None = None


class DiskReader(Protocol):
    def look(self, path: Path) -> DiskLook:
        """Blocking, a few bytes; takes no lock, so also of a disk in use. Raises OSError."""
        ...

    async def digest(self, path: Path) -> bytes:
        """SHA-256 over what a guest would read. Raises STEP_FAILED, also while somebody writes."""
        ...


class QemuDiskReader:
    """For qcow2 overlays, whose header is read here (docs/interop/qcow2.rst of QEMU), and raw files."""

    def look(self, path: Path) -> DiskLook:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            if len(header) < _HEADER_BYTES or header[:4] != _MAGIC:
                return DiskLook(virtual_bytes=path.stat().st_size)
            name_offset, name_length, _, size = struct.unpack(">QIIQ", header[8:_HEADER_BYTES])
            if not name_offset or not 0 < name_length <= _LONGEST_NAME:
                return DiskLook(virtual_bytes=size)
            file.seek(name_offset)
            name = file.read(name_length).decode(errors="surrogateescape")
        return DiskLook(virtual_bytes=size, backing=path.parent / name)

    async def digest(self, path: Path) -> bytes:
        with path.open("rb") as file:
            qcow2 = file.read(4) == _MAGIC
        return await content_digest(path, image_format="qcow2" if qcow2 else "raw")


class PretendingDiskReader:
    """For the files of PretendingDiskMaker."""

    def look(self, path: Path) -> DiskLook:
        words = path.read_text(errors="replace").split(maxsplit=3)
        if words[1:3] != ["bytes", "over"]:
            return DiskLook(virtual_bytes=path.stat().st_size)
        return DiskLook(virtual_bytes=int(words[0]), backing=Path(words[3].strip()))

    async def digest(self, path: Path) -> bytes:
        return hashlib.sha256(await asyncio.to_thread(path.read_bytes)).digest()

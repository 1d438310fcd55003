"""Where the bytes of a snapshot come from: QEMU's programs, or, below the fake hypervisor, nowhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from remuda_agent.disks import nbd
from remuda_agent.disks.readers import PretendingDiskReader
from remuda_agent.hypervisor.backups import DISK
from remuda_agent.snapshots import mapping
from remuda_agent.snapshots.planning import Span
from remuda_agent.snapshots.uploading import Readable


class DiskContents(Protocol):
    """Errors: STEP_FAILED; `remuda_agent.disks.nbd.DiskGone` when a backup has ended under its reader."""

    def idle(self, disk: Path) -> AbstractAsyncContextManager[Readable]:
        """A disk that no QEMU has open; none may open it until the block is left."""
        ...

    def backup(self, socket: Path, disk: Path) -> AbstractAsyncContextManager[Readable]:
        """`disk` as of the moment at which the backup began that is served on `socket`."""
        ...

    async def touched(self, disk: Path) -> list[Span]:
        """See `mapping.touched`."""
        ...

    async def changed(self, socket: Path, disk: Path) -> list[Span]:
        """See `mapping.changed`; of the backup of `disk`."""
        ...


class QemuDiskContents:
    """qemu-nbd, qemu-img, and the server of a backup."""

    def idle(self, disk: Path) -> AbstractAsyncContextManager[Readable]:
        return nbd.exported(disk, image_format="qcow2")

    def backup(self, socket: Path, disk: Path) -> AbstractAsyncContextManager[Readable]:
        return nbd.connected(socket, export=DISK)

    async def touched(self, disk: Path) -> list[Span]:
        return await mapping.touched(disk)

    async def changed(self, socket: Path, disk: Path) -> list[Span]:
        return await mapping.changed(socket)


class PretendingDiskContents:
    """For the files of PretendingDiskMaker: a disk holds the words of its file, and then zeros."""

    @asynccontextmanager
    async def idle(self, disk: Path) -> AsyncIterator[Readable]:
        yield _Pretended(disk)

    def backup(self, socket: Path, disk: Path) -> AbstractAsyncContextManager[Readable]:
        return self.idle(disk)

    async def touched(self, disk: Path) -> list[Span]:
        return [Span(0, disk.stat().st_size)]

    async def changed(self, socket: Path, disk: Path) -> list[Span]:
        return await self.touched(disk)


class _Pretended:
    def __init__(self, disk: Path) -> None:
        self._words = disk.read_bytes()
        self.size_bytes = PretendingDiskReader().look(disk).virtual_bytes or len(self._words)

    async def read(self, offset: int, length: int) -> bytes:
        return self._words[offset : offset + length].ljust(length, b"\0")

"""A disk's content as its guest sees it, read through qemu-nbd over a socket of its own.

The protocol is NBD's fixed newstyle handshake and simple replies, as qemu-nbd speaks them:
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from remuda_core.errors import Reason, RemudaError

_NBD, _OPTION = b"NBDMAGIC", b"IHAVEOPT"
_REQUEST, _REPLY = 0x25609513, 0x67446698
_EXPORT_NAME, _READ, _DISCONNECT = 1, 0, 2
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_PIECE_BYTES = 4 << 20
_START_SECONDS = 10.0
_RETRY_SECONDS = 0.02

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def content_digest(path: Path, *, image_format: str) -> bytes:
    """SHA-256 over the virtual disk, holes as zeros. Raises STEP_FAILED: a QEMU has it open for writing (its
    image lock holds on every host of the file system), or a file below it is missing.
    """
    async with exported(path, image_format=image_format) as disk:
        digest = hashlib.sha256()
        for offset in range(0, disk.size_bytes, _PIECE_BYTES):
            piece = await disk.read(offset, min(_PIECE_BYTES, disk.size_bytes - offset))
            # In a thread: a core is busy with it for as long as the disk is large.
            await asyncio.to_thread(digest.update, piece)
        return digest.digest()


class NbdDisk:
    """One connection to an export, as `exported` and `connected` give it. One reading at a time."""

    def __init__(self, name: str, size_bytes: int, connection: _Connection) -> None:
        self.size_bytes = size_bytes
        self._name = name
        self._reader, self._writer = connection

    async def read(self, offset: int, length: int) -> bytes:
        """At most 32 MiB, NBD's own limit. Raises STEP_FAILED; DiskGone when the server has ended."""
        try:
            self._writer.write(struct.pack(">IHHQQI", _REQUEST, 0, _READ, offset, offset, length))
            magic, error, cookie = struct.unpack(">IIQ", await self._reader.readexactly(16))
            if magic != _REPLY or cookie != offset or error:
                raise RemudaError(Reason.STEP_FAILED, f"{self._name} cannot be read at byte {offset}")
            return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as lost:
            raise DiskGone(self._name) from lost

    def close(self) -> None:
        self._writer.write(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        self._writer.close()


class DiskGone(RemudaError):
    """Whoever exported the disk has ended, or has closed the export."""

    def __init__(self, name: str) -> None:
        super().__init__(Reason.STEP_FAILED, f"the export ended while {name} was read")


@asynccontextmanager
async def exported(path: Path, *, image_format: str) -> AsyncIterator[NbdDisk]:
    """The content of a disk that nobody writes, and nobody may begin to write until the block is left.

    Raises as `content_digest`.
    """
    program = shutil.which("qemu-nbd")
    if program is None:
        raise RemudaError(Reason.STEP_FAILED, "qemu-nbd is not installed on this host")
    with tempfile.TemporaryDirectory(prefix="remuda-nbd-") as scratch:
        socket = Path(scratch) / "nbd"
        # Without -t it ends with its first client; --read-only fails while somebody else may write.
        process = await asyncio.create_subprocess_exec(
            program,
            "--read-only",
            f"--format={image_format}",
            f"--socket={socket}",
            str(path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            connection = await _connected(process, socket, path)
            try:
                disk = await _open(connection, str(path), export="")
            except DiskGone as error:
                # It listens before it has opened the disk.
                raise await _not_opened(process, path) from error
            try:
                yield disk
            finally:
                disk.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


@asynccontextmanager
async def connected(socket: Path, *, export: str) -> AsyncIterator[NbdDisk]:
    """An export that somebody else serves on a socket. Raises STEP_FAILED; DiskGone."""
    try:
        connection = await asyncio.open_unix_connection(str(socket))
    except OSError as error:
        raise DiskGone(export) from error
    disk = await _open(connection, export, export=export)
    try:
        yield disk
    finally:
        disk.close()


async def _open(connection: _Connection, name: str, *, export: str) -> NbdDisk:
    try:
        return NbdDisk(name, await _handshake(*connection, export), connection)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        connection[1].close()
        raise DiskGone(name) from error


async def _connected(process: asyncio.subprocess.Process, socket: Path, path: Path) -> _Connection:
    loop = asyncio.get_running_loop()
    end = loop.time() + _START_SECONDS
    while True:
        try:
            return await asyncio.open_unix_connection(str(socket))
        except OSError as error:
            if process.returncode is not None or loop.time() > end:
                raise await _not_opened(process, path) from error
        await asyncio.sleep(_RETRY_SECONDS)


async def _not_opened(process: asyncio.subprocess.Process, path: Path) -> RemudaError:
    with contextlib.suppress(TimeoutError):
        # Its last words come before its end, not before it hangs up.
        await asyncio.wait_for(process.wait(), _START_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    _, words = await process.communicate()
    said = words.decode(errors="replace").strip() or "it did not listen"
    return RemudaError(Reason.STEP_FAILED, f"qemu-nbd cannot open {path}: {said}")


async def _handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, export: str) -> int:
    """The size of the disk in bytes."""
    greeting = await reader.readexactly(18)
    if greeting[:16] != _NBD + _OPTION:
        raise RemudaError(Reason.STEP_FAILED, "the server does not speak NBD")
    writer.write(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES))
    name = export.encode()
    writer.write(_OPTION + struct.pack(">II", _EXPORT_NAME, len(name)) + name)
    size, _ = struct.unpack(">QH", await reader.readexactly(10))
    return int(size)

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
    async with _exported(path, image_format) as (reader, writer):
        size = await _handshake(reader, writer)
        digest = hashlib.sha256()
        for offset in range(0, size, _PIECE_BYTES):
            length = min(_PIECE_BYTES, size - offset)
            writer.write(struct.pack(">IHHQQI", _REQUEST, 0, _READ, offset, offset, length))
            magic, error, _ = struct.unpack(">IIQ", await reader.readexactly(16))
            if magic != _REPLY or error:
                raise RemudaError(Reason.STEP_FAILED, f"{path} cannot be read at byte {offset}")
            # In a thread: a core is busy with it for as long as the disk is large.
            await asyncio.to_thread(digest.update, await reader.readexactly(length))
        writer.write(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        return digest.digest()


@asynccontextmanager
async def _exported(path: Path, image_format: str) -> AsyncIterator[_Connection]:
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
                yield connection
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise RemudaError(Reason.STEP_FAILED, f"qemu-nbd ended while {path} was read") from error
            finally:
                connection[1].close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


async def _connected(process: asyncio.subprocess.Process, socket: Path, path: Path) -> _Connection:
    loop = asyncio.get_running_loop()
    end = loop.time() + _START_SECONDS
    while True:
        try:
            return await asyncio.open_unix_connection(str(socket))
        except OSError as error:
            if process.returncode is not None or loop.time() > end:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                _, words = await process.communicate()
                said = words.decode(errors="replace").strip() or "it did not listen"
                raise RemudaError(Reason.STEP_FAILED, f"qemu-nbd cannot open {path}: {said}") from error
        await asyncio.sleep(_RETRY_SECONDS)


async def _handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """The size of the disk in bytes."""
    greeting = await reader.readexactly(18)
    if greeting[:16] != _NBD + _OPTION:
        raise RemudaError(Reason.STEP_FAILED, "qemu-nbd does not speak NBD")
    writer.write(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES))
    writer.write(_OPTION + struct.pack(">II", _EXPORT_NAME, 0))
    size, _ = struct.unpack(">QH", await reader.readexactly(10))
    return int(size)

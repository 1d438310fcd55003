"""From the file that was uploaded to chunks of the virtual disk, by way of a raw sparse scratch file."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from remuda_core.errors import Reason, RemudaError
from remuda_core.images.chunks import HOLE, Digest, chunk_digest
from remuda_core.images.disk import allocated_chunks, read_chunk
from remuda_core.images.manifest import Manifest, chunk_count
from remuda_core.images.threads import to_end

from remuda_image_store.child import Limits, run
from remuda_image_store.content import Content
from remuda_image_store.inspection import Refused

# Hashing and compressing leave the interpreter lock; more than the cores only takes memory.
_AT_ONCE = max(2, min(8, os.cpu_count() or 2))
_MEMORY_BYTES = 2 << 30
_CPU_SECONDS = 3600
_SECONDS = 2 * 3600.0
_SLACK_BYTES = 1 << 20


async def assemble(parts: AsyncIterator[bytes], path: Path) -> str:
    """Writes the parts one after another; returns the SHA-256 of all, lower-case hex."""
    sha256 = hashlib.sha256()

    def write(data: bytes) -> None:
        sha256.update(data)
        with path.open("ab") as file:
            file.write(data)

    path.touch()
    async for data in parts:
        await to_end(write, data)
    return sha256.hexdigest()


async def to_raw(qcow2: Path, raw: Path, *, virtual_bytes: int, room_bytes: int) -> None:
    """The virtual disk of an inspected qcow2 file. Raises Refused, also beyond `room_bytes`; DISK_FULL.

    Room is counted in what the scratch file really takes: a small file can hold any amount of compressed
    data, and the limit on the file's size does not see holes.
    """
    limits = Limits(
        memory_bytes=_MEMORY_BYTES,
        cpu_seconds=_CPU_SECONDS,
        file_bytes=virtual_bytes + _SLACK_BYTES,
        seconds=_SECONDS,
    )

    def must_stop() -> str | None:
        taken = raw.stat().st_blocks * 512 if raw.exists() else 0
        return None if taken <= room_bytes else f"its disk holds more than {room_bytes} bytes of data"

    command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-S", "4k", str(qcow2), str(raw)]
    done = await run(command, limits, must_stop=must_stop)
    if done.returncode != 0:
        if "No space left" in done.trouble:
            raise RemudaError(Reason.DISK_FULL, "no room to unpack the image")
        trouble = done.trouble.replace(str(qcow2), "the file").replace(str(raw), "the disk")
        raise Refused(f"qemu-img convert fails: {trouble.removeprefix('qemu-img: ')}")
    # A quick one was through before it was looked at.
    if (reason := must_stop()) is not None:
        raise Refused(reason)
    if raw.stat().st_size != virtual_bytes:
        raise Refused(f"the disk has {raw.stat().st_size} bytes, not {virtual_bytes}")


async def to_chunks(raw: Path, virtual_bytes: int, content: Content) -> Manifest:
    """Puts every chunk that is not zero into the store."""
    digests = [HOLE] * chunk_count(virtual_bytes)
    fd = os.open(raw, os.O_RDONLY)

    async def one(index: int) -> None:
        digest, data = await to_end(_read, fd, virtual_bytes, index)
        digests[index] = digest
        if digest != HOLE:
            await content.put_chunk(digest, data)

    running: set[asyncio.Task[None]] = set()
    try:
        for index in allocated_chunks(fd, virtual_bytes):
            if len(running) >= _AT_ONCE:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.gather(*done)
            running.add(asyncio.create_task(one(index)))
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        os.close(fd)
    return Manifest(virtual_bytes=virtual_bytes, digests=tuple(digests))


async def put_again(raw: Path, manifest: Manifest, lacking: set[Digest], content: Content) -> None:
    """Chunks that were in the store, or came into it, and were removed since with another image."""
    fd = os.open(raw, os.O_RDONLY)
    try:
        for index, digest in enumerate(manifest.digests):
            if digest in lacking:
                lacking.discard(digest)
                _, data = await to_end(_read, fd, manifest.virtual_bytes, index)
                await content.put_chunk(digest, data)
    finally:
        os.close(fd)


def _read(fd: int, virtual_bytes: int, index: int) -> tuple[Digest, bytes]:
    data = read_chunk(fd, virtual_bytes, index)
    return chunk_digest(data), data

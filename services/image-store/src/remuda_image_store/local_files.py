"""Blobs as files: written whole under a temporary name, on the disk before the name says so. Blocking.

Chunks go to the disk past the page cache (O_DIRECT): copying them into it costs more processor time than
all hashing, and what has just been uploaded is not what is read next. A client that downloads an image reads
them the same way: a disk of a hundred gibibytes, sent once, would else push out of the cache what many hosts
ask for. Where the file system does not do that, they are written and read as everything else.
"""

import contextlib
import errno
import mmap
import os
import threading
import time
import uuid
from pathlib import Path

from remuda_core.images.disk import read_at, sync_directory

TEMPORARY = ".tmp"
# Times that a writer begins, which may have stood still for so long that its temporary file was removed.
_WRITES = 5
_DIRECT_FROM_BYTES = 256 << 10
# Of every disk there is, and of the buffer in memory.
_ALIGNED = 4096
_BUFFER_BYTES = (4 << 20) + 2 * _ALIGNED
_NOT_HERE = (errno.EINVAL, errno.EOPNOTSUPP)
_buffers = threading.local()


def open_root(root: Path) -> None:
    """Made if need be."""
    (root / TEMPORARY).mkdir(parents=True, exist_ok=True)


def drop_temporary(root: Path, older_than_seconds: float) -> None:
    """What killed writers have left."""
    oldest = time.time() - older_than_seconds
    for path in (root / TEMPORARY).iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def put(root: Path, key: str, head: bytes, data: bytes, *, blind: bool) -> bool:
    """`head`, then `data`. False: the key was there already; `blind`: takes as long then."""
    path = root / key
    _make_directory(path.parent, root)
    new = blind or not path.exists()
    if new:
        new = _write_patiently(root, path, head, data)
    # Also for a name that was there: whoever linked it may not have come to this point yet.
    sync_directory(path.parent)
    return new


def get_parted(path: Path, head_bytes: int, *, once: bool) -> tuple[bytes, bytes]:
    """Read apart, so that the longer part is not copied once more. `once`: nobody is expected to read it
    again soon.
    """
    if once and (parts := _read_direct(path, head_bytes)) is not None:
        return parts
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return read_at(file.fileno(), 0, head_bytes), read_at(file.fileno(), head_bytes, size - head_bytes)


def _write_patiently(root: Path, path: Path, head: bytes, data: bytes) -> bool:
    for _ in range(_WRITES - 1):
        with contextlib.suppress(FileNotFoundError):
            return _write(root / TEMPORARY / str(uuid.uuid4()), path, head, data)
    return _write(root / TEMPORARY / str(uuid.uuid4()), path, head, data)


def _write(temporary: Path, path: Path, head: bytes, data: bytes) -> bool:
    try:
        if not _write_direct(temporary, head, data):
            with temporary.open("wb", buffering=0) as file:
                for part in (head, data):
                    _write_all(file.fileno(), memoryview(part))
                os.fsync(file.fileno())
        # A link and not a rename: it refuses to replace.
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _write_direct(path: Path, head: bytes, data: bytes) -> bool:
    """False: not here."""
    size = len(head) + len(data)
    whole = -(-size // _ALIGNED) * _ALIGNED
    if not size >= _DIRECT_FROM_BYTES or whole > _BUFFER_BYTES:
        return False
    buffer = _buffer()
    buffer[: len(head)] = head
    buffer[len(head) : size] = data
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_DIRECT, 0o666)
        try:
            with memoryview(buffer) as view:
                _write_all(fd, view[:whole])
            os.ftruncate(fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        raise
    return True


def _read_direct(path: Path, head_bytes: int) -> tuple[bytes, bytes] | None:
    """None: not here."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        try:
            size = os.fstat(fd).st_size
            if not _DIRECT_FROM_BYTES <= size <= _BUFFER_BYTES:
                return None
            buffer = _buffer()
            if os.preadv(fd, [buffer], 0) != size:
                return None
            return buffer[:head_bytes], buffer[head_bytes:size]
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return None
        raise


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]


def _buffer() -> mmap.mmap:
    """One per thread, used again and again: aligned to a page, and its memory is there already."""
    buffer: mmap.mmap | None = getattr(_buffers, "buffer", None)
    if buffer is None:
        buffer = _buffers.buffer = mmap.mmap(-1, _BUFFER_BYTES)
    return buffer


def _make_directory(directory: Path, root: Path) -> None:
    if directory == root or directory.exists():
        return
    _make_directory(directory.parent, root)
    directory.mkdir(exist_ok=True)
    sync_directory(directory.parent)

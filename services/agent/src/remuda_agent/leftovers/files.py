"""Every file that Remuda keeps in a pool, told by its name and place. Blocking; changes nothing."""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from remuda.agent.v1.agent_pb2 import FoundDirectory, FoundFile
from remuda_core.errors import RemudaError
from remuda_core.ids import HostId

from remuda_agent.disks.owner import OWNER_FILE, read_owner
from remuda_agent.disks.pools import BASES, INSTANCES, UID_FILE, Pool, pool_uid
from remuda_agent.disks.readers import DiskReader
from remuda_agent.probing.nonces import PREFIX

_BASE = re.compile(r"(?P<digest>[0-9a-f]{64})\.(?P<rest>.+)")
_OF_A_POOL = (INSTANCES, BASES, UID_FILE, "lost+found")


def find_directories(pool: Pool, reader: DiskReader, only: str = "") -> Iterator[FoundDirectory]:
    """Those of instances, or of the one instance."""
    for path in _entries(pool.instances):
        if path.is_dir() and is_uuid(path.name) and only in ("", path.name):
            yield find_directory(pool, path, reader)


def find_directory(pool: Pool, path: Path, reader: DiskReader) -> FoundDirectory:
    found = FoundDirectory(instance_id=path.name, pool=pool.name, shared=pool.shared, pool_uid=pool_uid(pool))
    try:
        owner = read_owner(path)
    except (RemudaError, OSError) as error:
        owner, found.damage = None, str(error)
    if owner is not None:
        found.owner_host_id, found.epoch = owner.host_id, owner.epoch
        found.operation_id, found.role = owner.operation_id, owner.role
    for file in _entries_within(path):
        if file.name == OWNER_FILE:
            continue
        disk = file.name.startswith("disk") and file.is_file()
        kind = FoundFile.KIND_DISK if disk else FoundFile.KIND_OTHER
        with _gone_meanwhile():
            found.files.append(_file(pool, file, kind, size=reader.look(file).virtual_bytes if disk else 0))
    return found


def find_foreign(pool: Pool, only: str = "") -> Iterator[FoundFile]:
    """What is not Remuda's. `only`: a UUID that its name holds, as that of a disk that was set aside."""
    for path in _entries(pool.instances):
        if not (path.is_dir() and is_uuid(path.name)) and only in path.name:
            yield from _files(pool, path, FoundFile.KIND_FOREIGN)
    for path in _entries(pool.path):
        known = path.name in _OF_A_POOL or path.name.startswith((PREFIX, f"{UID_FILE}."))
        if not known and only in path.name:
            yield from _files(pool, path, FoundFile.KIND_FOREIGN)


def find_files(pool: Pool, host: HostId, used: set[Path], reader: DiskReader) -> Iterator[FoundFile]:
    """Base images, and what probes and broken fetches have left. `used`: see `backing_files`."""
    for path in _entries(pool.path):
        if path.name.startswith((PREFIX, f"{UID_FILE}.")):
            yield from _files(pool, path, FoundFile.KIND_TEMPORARY)
    for path in _entries(pool.bases):
        with _gone_meanwhile():
            if (found := find_base_file(pool, path, host, used, reader)) is not None:
                yield found


def find_base_file(
    pool: Pool, path: Path, host: HostId, used: set[Path], reader: DiskReader
) -> FoundFile | None:
    """None: it is a part of a base image, or another host's that shares the pool."""
    match = _BASE.fullmatch(path.name)
    if match is None:
        return _file(pool, path, FoundFile.KIND_FOREIGN)
    base, rest = path.with_name(f"{match['digest']}.raw"), match["rest"]
    if path == base:
        found = _file(pool, path, FoundFile.KIND_BASE_IMAGE, size=reader.look(path).virtual_bytes)
        found.in_use = path.resolve() in used
        return found
    if rest.endswith(".partial"):
        if pool.shared and rest != f"{host}.partial":
            return None
        found = _file(pool, path, FoundFile.KIND_TEMPORARY)
        found.in_use = is_locked(path)
        return found
    if rest.startswith("manifest"):
        return None if rest == "manifest" and base.exists() else _file(pool, path, FoundFile.KIND_TEMPORARY)
    return _file(pool, path, FoundFile.KIND_FOREIGN)


def backing_files(pool: Pool, reader: DiskReader) -> set[Path]:
    """What the overlays of a pool lie on, also those that somebody has set aside beside their directory."""
    found = set()
    for directory in _entries(pool.instances):
        for path in _entries_within(directory) if directory.is_dir() else [directory]:
            if path.is_file() and path.name != OWNER_FILE:
                with _gone_meanwhile():
                    backing = reader.look(path).backing
                    found |= {backing.resolve()} if backing is not None else set()
    return found


def is_uuid(text: str) -> bool:
    """In the canonical form: what Remuda names directories after."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _entries(directory: Path) -> list[Path]:
    """Raises OSError: a pool that is not mounted must not look like an empty one."""
    return sorted(directory.iterdir())


def _entries_within(directory: Path) -> list[Path]:
    with _gone_meanwhile():
        return _entries(directory)
    return []


def _gone_meanwhile() -> suppress:
    """Steps go on while we look: what they remove is not there, and no reason to see nothing at all."""
    return suppress(FileNotFoundError)


def _files(pool: Pool, path: Path, kind: FoundFile.Kind.ValueType) -> Iterator[FoundFile]:
    with _gone_meanwhile():
        yield _file(pool, path, kind)


def _file(pool: Pool, path: Path, kind: FoundFile.Kind.ValueType, *, size: int = 0) -> FoundFile:
    found = FoundFile(kind=kind, pool=pool.name, path=str(path.relative_to(pool.path)), virtual_bytes=size)
    status = path.lstat()
    found.allocated_bytes = status.st_blocks * 512
    found.modify_time.FromNanoseconds(status.st_mtime_ns)
    return found


def is_locked(path: Path) -> bool:
    """A fetch holds its file as long as it writes: see PartialBase."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False

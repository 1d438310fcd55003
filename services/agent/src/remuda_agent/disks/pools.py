"""Storage pools: directories that an operator has set aside for guests."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from remuda.compute.v1.host_pb2 import HostPool
from remuda_core.errors import Reason, RemudaError
from remuda_core.images.disk import sync_directory

UID_FILE = ".remuda-pool"
INSTANCES = "instances"
BASES = "base"

LEAST_FREE_BYTES = 64 << 20
"""A pool with less is full: an overlay takes no room when it is made, and all of it later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """``shared``: several hosts mount the same storage at the same path."""

    name: str
    path: Path
    shared: bool = False
    base_cache_bytes: int = 0
    """What base images may take; 0: see the share."""
    base_cache_share: float = 0.25
    """Of the pool's capacity."""

    @property
    def instances(self) -> Path:
        return self.path / INSTANCES

    @property
    def bases(self) -> Path:
        """Base images; overlays name them by absolute path, so it is the same path on every host."""
        return self.path / BASES

    def cache_bound(self) -> int:
        """Most bytes of base images, as far as they can be helped. A call of statvfs. Raises OSError."""
        if self.base_cache_bytes:
            return self.base_cache_bytes
        space = os.statvfs(self.path)
        return int(space.f_blocks * space.f_frsize * self.base_cache_share)


class Pools:
    """The pools of this host. Blocking calls, each a few system calls long."""

    def __init__(self, pools: Iterable[Pool]) -> None:
        self._pools = {pool.name: pool for pool in pools}

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def get(self, name: str) -> Pool:
        """Raises STEP_FAILED for a pool that this host does not have."""
        if name not in self._pools:
            known = ", ".join(sorted(self._pools)) or "none"
            raise RemudaError(Reason.STEP_FAILED, f"this host has no pool {name!r}; it has: {known}")
        return self._pools[name]

    def prepare(self) -> None:
        """Make each pool's directories and uid file. Raises OSError where the pool itself is not there: a
        mount that is missing must not be filled in on the disk below it.
        """
        for pool in self._pools.values():
            if not pool.path.is_dir():
                raise FileNotFoundError(f"pool {pool.name}: {pool.path} is no directory; is it mounted?")
            pool.instances.mkdir(exist_ok=True)
            pool.bases.mkdir(exist_ok=True)
            pool_uid(pool)

    def describe(self) -> list[HostPool]:
        """Size and free space now; a pool that cannot be looked at is left out. So is one without its uid
        file: it is not what `prepare` saw, and must not get an identity by being looked at.
        """
        found = []
        for pool in self._pools.values():
            with contextlib.suppress(OSError):
                space = os.statvfs(pool.path)
                found.append(
                    HostPool(
                        name=pool.name,
                        uid=read_uid(pool),
                        shared=pool.shared,
                        capacity_bytes=space.f_blocks * space.f_frsize,
                        available_bytes=space.f_bavail * space.f_frsize,
                    )
                )
        return found


def read_uid(pool: Pool) -> str:
    """The UUID at the pool's root: equal on two hosts means the same storage. Raises OSError."""
    return (pool.path / UID_FILE).read_text().strip()


def pool_uid(pool: Pool) -> str:
    """As `read_uid`; drawn when there is none."""
    path = pool.path / UID_FILE
    with contextlib.suppress(FileNotFoundError):
        return read_uid(pool)
    draft = pool.path / f"{UID_FILE}.{uuid.uuid4()}"
    with draft.open("w") as file:
        file.write(f"{uuid.uuid4()}\n")
        file.flush()
        os.fsync(file.fileno())
    # A link, not a rename: of two hosts that draw at the same time the first wins, and the other reads.
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(draft)
    draft.unlink()
    sync_directory(pool.path)
    return read_uid(pool)

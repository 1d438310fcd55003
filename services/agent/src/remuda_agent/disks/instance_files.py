"""One directory per instance and pool: owner.json first, then the overlay disk and the config drive.

<pool>/instances/<uuid>/{owner.json, disk.qcow2, config.img}
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from remuda.agent.v1.common_pb2 import DomainSpec
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId
from remuda_core.images.base_file import base_path
from remuda_core.images.disk import sync_directory

from remuda_agent.disks import config_drive
from remuda_agent.disks.base_images import parse_digest
from remuda_agent.disks.makers import DiskMaker
from remuda_agent.disks.owner import OWNER_FILE, read_owner, refuse_newer, write_owner
from remuda_agent.disks.pools import LEAST_FREE_BYTES, Pool, Pools
from remuda_agent.steps.ports import InstancePaths, Owner


class PoolInstanceFiles:
    """Implements `remuda_agent.steps.ports.InstanceFiles`.

    Steps of one instance come one after the other (the job table sees to it), so nothing here is locked.
    """

    def __init__(
        self,
        pools: Pools,
        maker: DiskMaker,
        *,
        least_free_bytes: int = LEAST_FREE_BYTES,
        on_removed: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_removed`: a directory may be gone, and its base image be needed by nobody."""
        self._pools = pools
        self._on_removed = on_removed
        self._maker = maker
        self._least_free_bytes = least_free_bytes

    def paths(self, pool: str, instance_id: InstanceId) -> InstancePaths:
        """Where the files are or will be. Raises STEP_FAILED for an unknown pool."""
        directory = self._pools.get(pool).instances / instance_id
        return InstancePaths(
            directory=directory, disk=directory / "disk.qcow2", config_drive=directory / "config.img"
        )

    async def create(self, spec: DomainSpec, owner: Owner) -> InstancePaths:
        """See the port. Files of ours that exist are kept; half-made ones never have their final name."""
        pool = self._pools.get(spec.pool)
        paths = self.paths(spec.pool, owner.instance_id)
        with _disk_full(pool):
            await asyncio.to_thread(self._claim, pool, paths.directory, owner)
            # Two programs side by side. Both have ended when this returns, whatever became of either of them:
            # an undo must not meet a program that still writes.
            made = await asyncio.gather(
                self._make_disk(pool, paths.disk, spec),
                self._make_config_drive(paths.config_drive, spec),
                return_exceptions=True,
            )
            for failure in made:
                if failure is not None:
                    raise failure
        return paths

    async def take_over(self, pool: str, owner: Owner) -> None:
        """Raises STALE_EPOCH when a newer owner stands there, STEP_FAILED when there is no directory."""
        await asyncio.to_thread(self._take_over, self.paths(pool, owner.instance_id).directory, owner)

    async def remove(self, pool: str, owner: Owner) -> None:
        """Nothing is done for another host's directory or a newer epoch's, nor by an incoming copy's undo
        for a directory that has become, or was before, an owner's.
        """
        directory = self.paths(pool, owner.instance_id).directory
        await asyncio.to_thread(_remove, directory, owner)
        self._on_removed()

    async def owner(self, pool: str, instance_id: InstanceId) -> Owner | None:
        """See the port."""
        return await asyncio.to_thread(read_owner, self.paths(pool, instance_id).directory)

    async def delete(self, pool: str, owner: Owner) -> None:
        """See the port. Never part of an undo: what an undo finds of an older placement is the guest's only
        disk.
        """
        directory = self.paths(pool, owner.instance_id).directory
        await asyncio.to_thread(_delete, directory, owner)
        self._on_removed()

    def owners(self) -> list[tuple[str, Owner]]:
        """Every directory's record on every pool, by name of the pool; for the janitor and for adoption."""
        return [
            (pool.name, owner)
            for pool in self._pools
            if pool.instances.is_dir()
            for directory in sorted(pool.instances.iterdir())
            if (owner := read_owner(directory)) is not None
        ]

    async def _make_disk(self, pool: Pool, path: Path, spec: DomainSpec) -> None:
        if not path.exists():
            draft, base = _draft(path), base_path(pool.bases, parse_digest(spec.manifest_digest))
            await self._maker.overlay(draft, base=base, size_bytes=spec.disk_bytes)
            await asyncio.to_thread(_publish, draft, path)

    async def _make_config_drive(self, path: Path, spec: DomainSpec) -> None:
        if not path.exists():
            draft, files = _draft(path), config_drive.documents(spec)
            await self._maker.config_drive(draft, files=files, volume_id=config_drive.volume_id(spec))
            await asyncio.to_thread(_publish, draft, path)

    def _claim(self, pool: Pool, directory: Path, owner: Owner) -> None:
        space = os.statvfs(pool.path)
        if space.f_bavail * space.f_frsize < self._least_free_bytes:
            raise RemudaError(Reason.DISK_FULL, f"pool {pool.name} has no room left")
        directory.mkdir(exist_ok=True)
        found = read_owner(directory)
        if found is None:
            strays = sorted(path.name for path in directory.iterdir() if path.name.startswith("disk"))
            if strays:
                raise RemudaError(Reason.STEP_FAILED, f"{directory} holds {strays} and no {OWNER_FILE}")
        else:
            refuse_newer(found, owner)
            ours = found.host_id == owner.host_id and found.epoch == owner.epoch
            left_over = found.host_id == owner.host_id and found.role == "incoming"
            if not ours and not left_over:
                raise RemudaError(
                    Reason.STEP_FAILED,
                    f"{directory} still belongs to epoch {found.epoch} on host {found.host_id}: it has to be"
                    " released first",
                    metadata={"epoch": str(found.epoch), "host": found.host_id},
                )
            if not ours:
                # A migration hither that failed has left it; it never held the only copy of anything.
                _remove(directory, found)
                directory.mkdir()
        if found is None or found != owner:
            write_owner(directory, owner)

    @staticmethod
    def _take_over(directory: Path, owner: Owner) -> None:
        found = read_owner(directory)
        if found is None:
            raise RemudaError(Reason.STEP_FAILED, f"{directory} has no {OWNER_FILE}")
        refuse_newer(found, owner)
        if found != owner:
            write_owner(directory, owner)


def _remove(directory: Path, owner: Owner) -> None:
    found = read_owner(directory)
    if found is None:
        # Made and not yet claimed, or removed up to its name; anything else in it is not ours to judge.
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
        return
    if found.host_id != owner.host_id or found.epoch > owner.epoch:
        return
    if owner.role == "incoming" and (found.role == "owner" or found.epoch != owner.epoch):
        return
    clear_directory(directory)


def _delete(directory: Path, owner: Owner) -> None:
    found = read_owner(directory)
    if found is not None:
        refuse_newer(found, owner)
        if found.host_id == owner.host_id or found.epoch < owner.epoch:
            clear_directory(directory)
    else:
        _remove(directory, owner)
    if directory.exists():
        whose = f"epoch {found.epoch} on host {found.host_id}" if found else f"nobody: it has no {OWNER_FILE}"
        raise RemudaError(Reason.STEP_FAILED, f"{directory} is not removed, it belongs to {whose}")


def clear_directory(directory: Path) -> None:
    """Removes it with all that is in it; blocking. Whose it is is for the caller to have checked."""
    # owner.json last: whatever is left by a crash still says whose it is.
    for path in list(directory.iterdir()):
        if path.name != OWNER_FILE:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (directory / OWNER_FILE).unlink()
    directory.rmdir()
    sync_directory(directory.parent)


def _draft(path: Path) -> Path:
    draft = path.with_suffix(f"{path.suffix}.new")
    draft.unlink(missing_ok=True)
    return draft


def _publish(draft: Path, path: Path) -> None:
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.rename(path)
    sync_directory(path.parent)


@contextmanager
def _disk_full(pool: Pool) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RemudaError(Reason.DISK_FULL, f"pool {pool.name} has no room left") from error
        raise

"""A disk as it was at one moment, open for reading: of a guest that is off, or of one that goes on.

Why the guest is stopped for an instant after its backup has begun: what it has touched is read off the
overlay's file, and QEMU keeps the tables of a qcow2 file in memory until the guest flushes. Without this,
clusters that were written before the moment are missing in what qemu-img tells, and would be taken for
untouched. Stopping the CPUs makes QEMU flush every disk. Whatever is allocated afterwards only adds.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1.source_pb2 import ImageSource
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId

from remuda_agent.hypervisor import BackupRequest, DomainMissing, DomainView, Guard, Hypervisor, PowerState
from remuda_agent.snapshots.planning import Span
from remuda_agent.snapshots.reading import DiskContents
from remuda_agent.snapshots.uploading import Readable
from remuda_agent.steps.ports import InstancePaths

_log = structlog.get_logger(__name__)

SCRATCH = "snapshot.scratch"
"""Beside the disk while a backup of it may run: what the guest overwrites meanwhile."""
_SOCKET = "nbd"

_REQUIRED = SnapshotInstanceRequest.QUIESCE_REQUIRED
_NONE = SnapshotInstanceRequest.QUIESCE_NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """How a guest's file systems are frozen; `limit` in seconds."""

    quiesce: SnapshotInstanceRequest.Quiesce.ValueType
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """`touched`: everything else is as the base image says."""

    disk: Readable
    touched: list[Span]
    consistency: ImageSource.Consistency.ValueType
    time: datetime


class Moments:
    """Of the disks of one host. `directory`: for the sockets of backups."""

    def __init__(self, *, hypervisor: Hypervisor, contents: DiskContents, directory: Path) -> None:
        self._hypervisor = hypervisor
        self._contents = contents
        self._directory = directory
        self._settling: dict[InstanceId, int] = {}

    def settling(self) -> Mapping[InstanceId, int]:
        """How often stopping a guest for an instant was begun or ended: odd means now."""
        return dict(self._settling)

    @asynccontextmanager
    async def idle(self, paths: InstancePaths) -> AsyncIterator[Moment]:
        """Of a guest without a QEMU. Raises STEP_FAILED: there is one."""
        async with self._contents.idle(paths.disk) as disk:
            yield Moment(
                disk=disk,
                touched=await self._contents.touched(paths.disk),
                consistency=ImageSource.CONSISTENCY_OFF,
                time=datetime.now(UTC),
            )

    @asynccontextmanager
    async def live(self, view: DomainView, paths: InstancePaths, quiet: Quiet) -> AsyncIterator[Moment]:
        """Of a guest that runs or is paused. Raises QUIESCE_FAILED, HYPERVISOR_ERROR, DiskGone."""
        runs = view.power_state is PowerState.RUNNING
        if quiet.quiesce == _REQUIRED and not runs:
            raise RemudaError(Reason.QUIESCE_FAILED, "the guest is paused: its file systems cannot be frozen")
        try:
            socket = await asyncio.to_thread(self._socket, view.instance_id, paths)
            request = BackupRequest(
                instance_id=view.instance_id, socket=socket, scratch=paths.directory / SCRATCH
            )
            async with self._hypervisor.guarded(view.instance_id, limit=quiet.limit) as guard:
                frozen = runs and await _freeze(guard, quiet)
                await self._hypervisor.begin_backup(request)
                time = datetime.now(UTC)
                held = frozen and await guard.thaw()
                if quiet.quiesce == _REQUIRED and not held:
                    raise RemudaError(
                        Reason.QUIESCE_FAILED, "the guest did not stay frozen until its snapshot was taken"
                    )
                if runs:
                    await self._settle(view.instance_id, guard)
            touched = await self._contents.touched(paths.disk)
            async with self._contents.backup(socket, paths.disk) as disk:
                yield Moment(
                    disk=disk,
                    touched=touched,
                    consistency=ImageSource.CONSISTENCY_FILESYSTEM if held else ImageSource.CONSISTENCY_CRASH,
                    time=time,
                )
        finally:
            await self.clean(view.instance_id, paths)

    async def clean(self, instance_id: InstanceId, paths: InstancePaths) -> None:
        """No backup of ours is left, of whichever process; the scratch file goes last, for it says so."""
        scratch = paths.directory / SCRATCH
        if await asyncio.to_thread(scratch.exists):
            with suppress(DomainMissing):
                await self._hypervisor.end_backup(instance_id)
            await asyncio.to_thread(scratch.unlink, missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, self._directory / instance_id, ignore_errors=True)

    async def _settle(self, instance_id: InstanceId, guard: Guard) -> None:
        count = self._settling.get(instance_id, 0)
        self._settling[instance_id] = count + 1
        try:
            await guard.settle()
        finally:
            self._settling[instance_id] = count + 2

    def _socket(self, instance_id: InstanceId, paths: InstancePaths) -> Path:
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        private = self._directory / instance_id
        private.mkdir(mode=0o700, exist_ok=True)
        # QEMU makes the socket, as the user to whom libvirt has given the disk.
        owner = paths.disk.stat()
        if os.geteuid() == 0:
            os.chown(private, owner.st_uid, owner.st_gid)
        return private / _SOCKET


async def _freeze(guard: Guard, quiet: Quiet) -> bool:
    if quiet.quiesce == _NONE:
        return False
    try:
        await guard.freeze()
    except RemudaError as error:
        if error.reason is not Reason.QUIESCE_FAILED or quiet.quiesce == _REQUIRED:
            raise
        _log.info("the snapshot is of a guest that is not frozen", error=str(error))
        return False
    return True

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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog
from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1.source_pb2 import ImageSource
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId
from remuda_core.images.manifest import Manifest

from remuda_agent.hypervisor import BackupRequest, DomainMissing, DomainView, Guard, Hypervisor, PowerState
from remuda_agent.snapshots.keeping import CHECKPOINT, Kept, kept
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
    """`touched`: everything else is as `earlier` says, or, where that is None, as the base image does."""

    disk: Readable
    touched: list[Span]
    consistency: ImageSource.Consistency.ValueType
    time: datetime
    earlier: Manifest | None = None
    checkpoint: str = ""
    """The hypervisor's name of this moment; empty: it has none."""


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
    async def live(
        self, view: DomainView, paths: InstancePaths, quiet: Quiet, *, checkpoint: str
    ) -> AsyncIterator[Moment]:
        """Of a guest that runs or is paused. Raises QUIESCE_FAILED, HYPERVISOR_ERROR, DiskGone.

        `checkpoint`: a new name for this moment.
        """
        instance = view.instance_id
        runs = view.power_state is PowerState.RUNNING
        if quiet.quiesce == _REQUIRED and not runs:
            raise RemudaError(Reason.QUIESCE_FAILED, "the guest is paused: its file systems cannot be frozen")
        try:
            known = await self._known(instance, paths)
            socket = await asyncio.to_thread(self._socket, instance, paths)
            request = BackupRequest(
                instance_id=instance,
                socket=socket,
                scratch=paths.directory / SCRATCH,
                since=known.checkpoint if known else "",
                checkpoint=checkpoint,
            )
            async with self._hypervisor.guarded(instance, limit=quiet.limit) as guard:
                frozen = runs and await _freeze(guard, quiet)
                begun = await self._begin(request)
                time = datetime.now(UTC)
                held = frozen and await guard.thaw()
                if quiet.quiesce == _REQUIRED and not held:
                    raise RemudaError(
                        Reason.QUIESCE_FAILED, "the guest did not stay frozen until its snapshot was taken"
                    )
                # What a checkpoint knows is in QEMU's memory, and told from there.
                if runs and not begun.since:
                    await self._settle(instance, guard)
            if begun.since:
                touched = await self._contents.changed(socket, paths.disk)
            else:
                touched = await self._contents.touched(paths.disk)
            async with self._contents.backup(socket, paths.disk) as disk:
                yield Moment(
                    disk=disk,
                    touched=touched,
                    consistency=ImageSource.CONSISTENCY_FILESYSTEM if held else ImageSource.CONSISTENCY_CRASH,
                    time=time,
                    earlier=known.manifest if known and begun.since else None,
                    checkpoint=begun.checkpoint,
                )
        finally:
            await self.clean(instance, paths)

    async def end_leftover(self, instance_id: InstanceId, paths: InstancePaths) -> None:
        """Of an agent that has died, and perhaps its guard with it: the socket's directory is made before
        anything is frozen.
        """
        if await asyncio.to_thread((self._directory / instance_id).exists):
            try:
                await self._hypervisor.thaw(instance_id)
            except RemudaError as error:
                _log.warning("the guest may be frozen", instance=instance_id, error=str(error))
        await self.clean(instance_id, paths)

    async def keep_only(self, instance_id: InstanceId, checkpoint: str) -> None:
        """Every other checkpoint goes; none is needed for a snapshot to be right."""
        try:
            for name in await self._hypervisor.checkpoints(instance_id):
                if name != checkpoint:
                    await self._hypervisor.delete_checkpoint(instance_id, name)
        except RemudaError as error:
            _log.warning("a checkpoint is left for the next snapshot", instance=instance_id, error=str(error))

    async def _known(self, instance_id: InstanceId, paths: InstancePaths) -> Kept | None:
        """The last snapshot, if the hypervisor has kept account since. Checkpoints of snapshots that were not
        read to their end go; what they know goes over to the one before.
        """
        known = await asyncio.to_thread(kept, paths.directory / CHECKPOINT)
        names = await self._hypervisor.checkpoints(instance_id)
        if known is not None and known.checkpoint not in names:
            known = None
        await self.keep_only(instance_id, known.checkpoint if known else "")
        return known

    async def _begin(self, request: BackupRequest) -> BackupRequest:
        """The backup that has begun. A checkpoint is only a short cut: one that a killed QEMU could not close
        is of no use, and a disk may not be able to keep one.
        """
        ways = [request, replace(request, since=""), replace(request, since="", checkpoint="")]
        for way in dict.fromkeys(ways[:-1]):
            try:
                await self._hypervisor.begin_backup(way)
                return way
            except RemudaError as error:
                _log.warning("no use of a checkpoint", instance=request.instance_id, error=str(error))
            if way.since:
                await self.keep_only(request.instance_id, "")
        await self._hypervisor.begin_backup(ways[-1])
        return ways[-1]

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

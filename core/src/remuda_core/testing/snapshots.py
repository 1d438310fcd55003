"""Snapshot jobs of hosts in memory: detached, joined when ordered again, ended by an undo."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum, auto

from remuda.agent.v1.agent_pb2 import RunStepRequest, SnapshotDisk, StepOutput
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.operation_pb2 import Progress
from remuda.image.v1.source_pb2 import ImageSource, TransferCounts

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId

COUNTS = TransferCounts(
    disk_bytes=1 << 30,
    touched_bytes=64 << 20,
    read_bytes=64 << 20,
    deduplicated_bytes=16 << 20,
    sent_bytes=40 << 20,
    stored_bytes=30 << 20,
)


class Snapshotting(Enum):
    """What becomes of a snapshot that is ordered of a host."""

    SUCCEEDS = auto()
    UNTIL_STOPPED = auto()
    """Sends on and on, until an undo, or `finish`."""
    CANNOT_FREEZE = auto()
    AGENT_DIES = auto()
    """Right after the commit; what it had begun with QEMU stays until somebody ends it."""


Commit = Callable[[SnapshotDisk, ImageSource], Awaitable[None]]
"""The image store's part. Raises RemudaError."""


async def _no_store(_work: SnapshotDisk, _source: ImageSource) -> None:
    raise RemudaError(Reason.STORE_UNAVAILABLE, "there is no image store")


class FakeSnapshots:
    """Of one host. `backups` are the jobs that QEMU has for it."""

    def __init__(self) -> None:
        self.how = Snapshotting.SUCCEEDS
        self.consistency: ImageSource.Consistency.ValueType = ImageSource.CONSISTENCY_FILESYSTEM
        self.commit: Commit = _no_store
        self.backups: set[InstanceId] = set()
        self.orders: list[SnapshotDisk] = []
        """To do it, joins too."""
        self.begun = 0
        """Joins not counted."""
        self.sending = asyncio.Event()
        self.finish = asyncio.Event()
        self._jobs: dict[str, asyncio.Task[StepOutput]] = {}

    async def run(self, request: RunStepRequest, on_progress: Callable[[Progress], None]) -> StepOutput:
        key = request.key
        if key.direction == StepKey.DIRECTION_UNDO:
            return await self._undo(key)
        self.orders.append(request.snapshot_disk)
        for percent in (30, 60):
            on_progress(Progress(percent=percent, message="uploading", snapshot=COUNTS))
        if key.operation_id not in self._jobs:
            self.begun += 1
            job = asyncio.create_task(self._job(InstanceId(key.instance_id), request.snapshot_disk))
            job.add_done_callback(lambda _: self._jobs.pop(key.operation_id, None))
            self._jobs[key.operation_id] = job
        job = self._jobs[key.operation_id]
        await asyncio.wait({job})
        if job.cancelled():
            raise RemudaError(Reason.CANCELLED, "the snapshot was stopped")
        return job.result()

    async def _undo(self, key: StepKey) -> StepOutput:
        job = self._jobs.get(key.operation_id)
        if job is not None:
            job.cancel()
            await asyncio.wait({job})
        self.backups.discard(InstanceId(key.instance_id))
        return StepOutput()

    async def _job(self, instance: InstanceId, work: SnapshotDisk) -> StepOutput:
        if self.how is Snapshotting.CANNOT_FREEZE:
            raise RemudaError(Reason.QUIESCE_FAILED, "the guest's agent does not answer")
        self.backups.add(instance)
        if self.how is Snapshotting.UNTIL_STOPPED:
            self.sending.set()
            await self.finish.wait()
        source = ImageSource(consistency=self.consistency, counts=COUNTS)
        try:
            await self.commit(work, source)
        except RemudaError:
            self.backups.discard(instance)
            raise
        if self.how is Snapshotting.AGENT_DIES:
            raise RemudaError(Reason.HOST_UNREACHABLE, "the agent died")
        self.backups.discard(instance)
        return StepOutput(snapshot=source)

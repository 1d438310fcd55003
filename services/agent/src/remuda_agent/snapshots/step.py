"""One order to bring a disk into a new image: how the disk is read depends on what its guest does now.

    off, or its memory saved   nobody writes: the overlay is read through qemu-nbd, which keeps QEMU off it
    running                    freeze?, backup job (the moment), thaw, settle, then its export is read
    paused                     as running, with nothing to freeze or to settle

A guest that goes off while it is read takes the backup with it, and is read again as one that is off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog
from remuda.agent.v1.agent_pb2 import RunStepRequest, SnapshotDisk, StepOutput
from remuda.compute.v1.operation_pb2 import Progress
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda.image.v1.source_pb2 import ImageSource, TransferCounts
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId, InstanceId
from remuda_core.images.base_file import base_path
from remuda_core.images.manifest import BadManifest, Manifest, parse

from remuda_agent.disks.base_images import parse_digest
from remuda_agent.disks.pools import Pools
from remuda_agent.hypervisor import Hypervisor
from remuda_agent.jobs import Job
from remuda_agent.snapshots.keeping import LAST, Kept, keep, kept
from remuda_agent.snapshots.moments import Moment, Moments, Quiet
from remuda_agent.snapshots.planning import plan
from remuda_agent.snapshots.uploading import Transfer, Uploader
from remuda_agent.steps.ports import InstanceFiles, InstancePaths, Owner

_log = structlog.get_logger(__name__)

FREEZE_LIMIT_SECONDS = 10.0

Uploading = Callable[[ImageId, SignedGrant], Uploader]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """One order, and what it is about."""

    work: SnapshotDisk
    instance: InstanceId
    paths: InstancePaths
    uploader: Uploader
    job: Job

    @property
    def quiet(self) -> Quiet:
        limit = FREEZE_LIMIT_SECONDS
        if self.work.HasField("freeze_limit"):
            limit = self.work.freeze_limit.ToTimedelta().total_seconds()
        return Quiet(quiesce=self.work.quiesce, limit=limit)

    def tell(self, counts: TransferCounts) -> None:
        percent = 100 * counts.read_bytes // counts.touched_bytes if counts.touched_bytes else 100
        self.job.report(
            Progress(percent=min(percent, 99), message="reading what was touched", snapshot=counts)
        )


class DiskSnapshots:
    """The snapshots of one host."""

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        files: InstanceFiles,
        pools: Pools,
        moments: Moments,
        uploading: Uploading,
        host_id: HostId,
    ) -> None:
        self._hypervisor = hypervisor
        self._files = files
        self._pools = pools
        self._moments = moments
        self._uploading = uploading
        self._host_id = host_id

    async def take(self, request: RunStepRequest, job: Job) -> StepOutput:
        """Raises CANCELLED when `job` is stopped, QUIESCE_FAILED, what `ChunkUploader` raises, STEP_FAILED,
        HYPERVISOR_ERROR.
        """
        work = request.snapshot_disk
        instance = InstanceId(request.key.instance_id)
        order = _Order(
            work=work,
            instance=instance,
            paths=self._files.paths(work.pool, instance),
            uploader=self._uploading(ImageId(work.image_id), work.grant),
            job=job,
        )
        await self._require_ours(request)
        await self._moments.clean(instance, order.paths)
        if (done := await self._committed(order)) is not None:
            return done
        view = await self._hypervisor.view(instance)
        if view is not None and view.active:
            try:
                async with self._moments.live(view, order.paths, order.quiet) as moment:
                    return await self._transfer(order, moment)
            except RemudaError as error:
                view = await self._hypervisor.view(instance)
                if error.reason is Reason.CANCELLED or (view is not None and view.active):
                    raise
                _log.info("the guest went off while its disk was read", instance=instance, error=str(error))
        async with self._moments.idle(order.paths) as moment:
            return await self._transfer(order, moment)

    async def undo(self, request: RunStepRequest, _: Job) -> StepOutput:
        """Nothing of it goes on here."""
        instance = InstanceId(request.key.instance_id)
        paths = self._files.paths(request.snapshot_disk.pool, instance)
        await self._moments.clean(instance, paths)
        return StepOutput()

    async def end_leftovers(self, owners: Iterable[tuple[str, Owner]]) -> None:
        """At the start: a backup goes on without the agent that began it, and nobody reads it any more."""
        for pool, owner in owners:
            if owner.host_id == self._host_id:
                try:
                    paths = self._files.paths(pool, owner.instance_id)
                    await self._moments.clean(owner.instance_id, paths)
                except RemudaError as error:
                    # The next snapshot tries again; the host is of use without that.
                    _log.warning("a backup goes on", instance=owner.instance_id, error=str(error))

    async def _require_ours(self, request: RunStepRequest) -> None:
        key, pool = request.key, request.snapshot_disk.pool
        owner = await self._files.owner(pool, InstanceId(key.instance_id))
        if owner is None or owner.host_id != self._host_id or owner.role != "owner":
            raise RemudaError(Reason.STEP_FAILED, f"this host does not own the disk of {key.instance_id}")
        if owner.epoch > key.epoch:
            raise RemudaError(
                Reason.STALE_EPOCH,
                f"the disk here is of epoch {owner.epoch}; the order is for epoch {key.epoch}",
                metadata={"epoch": str(owner.epoch)},
            )

    async def _committed(self, order: _Order) -> StepOutput | None:
        """An earlier run of the same order has read the disk to its end, and perhaps committed it: an image
        that is ACTIVE must not be answered with another moment.
        """
        last = await asyncio.to_thread(kept, order.paths.directory / LAST)
        if last is None or last.image_id != order.work.image_id:
            return None
        try:
            done = await order.uploader.commit(
                last.manifest, consistency=last.consistency, counts=last.counts, snapshot_time=last.time
            )
        except RemudaError as error:
            if error.reason is not Reason.IMAGE_INCOMPLETE:
                raise
            return None
        last.counts.stored_bytes = done.stored_bytes
        return _output(last)

    async def _transfer(self, order: _Order, moment: Moment) -> StepOutput:
        base = await asyncio.to_thread(self._base_manifest, order.work)
        planned = plan(moment.disk.size_bytes, earlier=base, touched=moment.touched)
        transfer = Transfer(
            planned,
            moment.disk,
            order.uploader,
            incremental=False,
            stop=order.job.stop,
            on_progress=order.tell,
        )
        manifest = await transfer.content()
        last = Kept(
            image_id=order.work.image_id,
            manifest=manifest,
            consistency=moment.consistency,
            time=moment.time,
            counts=transfer.counts,
        )
        # Before the commit, whose answer may be lost.
        await asyncio.to_thread(keep, order.paths.directory / LAST, last)
        await transfer.commit(manifest, consistency=moment.consistency, time=moment.time)
        return _output(last)

    def _base_manifest(self, work: SnapshotDisk) -> Manifest | None:
        """None: it is not beside the base, or damaged; then the whole disk is read."""
        digest = parse_digest(work.manifest_digest)
        path = base_path(self._pools.get(work.pool).bases, digest).with_suffix(".manifest")
        try:
            return parse(path.read_bytes(), digest)
        except (OSError, BadManifest) as error:
            _log.warning("the manifest of a base image cannot be used", path=str(path), error=str(error))
            return None


def _output(last: Kept) -> StepOutput:
    output = StepOutput(snapshot=ImageSource(consistency=last.consistency, counts=last.counts))
    output.snapshot.snapshot_time.FromDatetime(last.time)
    return output

"""SnapshotInstance: an image holds the system disk as it was at one moment; the guest goes on meanwhile.

Parameters: whether the guest's file systems are frozen for that moment. Name, size and charge of the image
are in its record, which was written in admission, UPLOADING.

    disk_uploaded     the agent has sent what was touched, and the image store has made the image ACTIVE
    transfer_ended    nothing of it goes on at the host

Point of no return: inside the image store, when CommitImage makes the image ACTIVE. The record is looked at
before every order and in the undo, so a commit whose answer was lost is found, and the saga goes forward from
it; a cancel comes too late then. Up to there the undo marks the image DELETING, by a txn that compares the
record: of that and the commit one loses. Only then is the agent told to stop. So it does no harm when it
cannot be told, and goes on for a while: what it sends is refused, or collected.

The instance stays what it is throughout: the agent holds the guest for milliseconds, and its host says itself
what it sees then.
"""

from remuda.agent.v1.agent_pb2 import SnapshotDisk
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1.image_pb2 import Image
from remuda.image.v1.source_pb2 import ImageSource
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda.store.v1.saga_pb2 import SnapshotState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId

from remuda_scheduler.engine.run import Run
from remuda_scheduler.engine.saga import AlreadyDone, Commit, Ending, Saga, Step, Unreachable
from remuda_scheduler.sagas.guest import observed_state
from remuda_scheduler.sagas.new_image import (
    byte_limit,
    give_up_image,
    given_up,
    image_made,
    look_at_image,
    readable_images,
)

_Run = Run[SnapshotState]

LONGEST_SECONDS = 6 * 3600.0
"""For one attempt: 1 TiB at 50 MiB/s. That a store or an agent stands still is noticed much earlier."""


async def begin(run: _Run) -> None:
    """Raises STATE_FORBIDS_ACTION, IMAGE_NOT_FOUND."""
    record, status = await run.instance()
    if not status.host_id:
        raise RemudaError(Reason.STATE_FORBIDS_ACTION, "the instance is on no host: it has no disk")
    await look_at_image(run)
    memory = run.state
    memory.host_id, memory.pool, memory.epoch = status.host_id, status.pool, status.epoch
    memory.image_id = run.record.image_id
    memory.readable_images.extend(readable_images(run, record))
    memory.manifest_digest = record.manifest_digest


def _host(run: _Run) -> str:
    return run.state.host_id


async def upload_disk(run: _Run) -> None:
    if (await look_at_image(run)).active:
        return
    try:
        output = await run.order(run.state.host_id, run.state.epoch, snapshot_disk=await _work(run))
    except RemudaError as error:
        if error.reason is not Reason.HOST_UNREACHABLE:
            await look_at_image(run)  # that it was deleted says more than what came of it
        raise
    if not (await look_at_image(run)).active:
        raise RemudaError(Reason.STEP_FAILED, "the host says that it is done, yet the image is not ACTIVE")
    run.state.output.CopyFrom(output)


async def _work(run: _Run) -> SnapshotDisk:
    """Signed anew for every attempt: an attempt may come hours after the one before."""
    record, _ = await run.instance()
    grant = run.services.grants.sign(
        host_id=HostId(run.state.host_id),
        operation_id=run.operation_id,
        images=[ImageId(image) for image in run.state.readable_images],
        writable_image=ImageId(run.state.image_id),
        byte_limit=await byte_limit(run, record.disk_bytes),
        at_least_seconds=LONGEST_SECONDS,
    )
    return SnapshotDisk(
        image_id=run.state.image_id,
        pool=run.state.pool,
        grant=grant,
        manifest_digest=run.state.manifest_digest,
        quiesce=_request(run).quiesce,
    )


async def give_up_upload(run: _Run) -> None:
    if not await give_up_image(run):
        raise AlreadyDone("the image is ACTIVE")
    await _end_transfer(run)


async def end_transfer(run: _Run) -> None:
    if _untold(run):
        await _end_transfer(run)


async def _end_transfer(run: _Run) -> None:
    work = SnapshotDisk(image_id=run.state.image_id, pool=run.state.pool)
    await run.order(run.state.host_id, run.state.epoch, undo=True, step="disk_uploaded", snapshot_disk=work)


def _untold(run: _Run) -> bool:
    """The commit is known from the image alone: an agent that died after it has left its job with QEMU."""
    return not run.state.HasField("output")


def _host_untold(run: _Run) -> str:
    """Empty where nothing is to be done there: then nothing of it need be waited for either."""
    return run.state.host_id if _untold(run) else ""


def _request(run: _Run) -> SnapshotInstanceRequest:
    request = SnapshotInstanceRequest()
    run.record.request.Unpack(request)
    return request


async def succeed(run: _Run) -> Ending:
    output = run.state.output

    def change(status: InstanceStatus) -> None:
        if output.HasField("observed"):
            status.observed.CopyFrom(observed_state(run.state.host_id, output.observed))

    image = await image_made(run)
    return Ending(change=change, response=image, events=(_created(run, image),))


def _created(run: _Run, image: Image) -> InstanceEvent:
    source = image.source if image.source.HasField("counts") else run.state.output.snapshot
    counts, consistency = source.counts, image.source.consistency or source.consistency
    crash = consistency == ImageSource.CONSISTENCY_CRASH
    wanted = _request(run).quiesce != SnapshotInstanceRequest.QUIESCE_NONE
    words = (
        f"Image {image.display_name or image.uid}: "
        f"{_mib(counts.stored_bytes)} new of {_mib(counts.disk_bytes)}; "
        f"{_mib(counts.touched_bytes)} touched, {_mib(counts.read_bytes)} read, "
        f"{_mib(counts.sent_bytes)} sent"
    )
    if crash and wanted:
        words += ". Its file systems were not frozen: it is as after a loss of power"
    return run.event(
        "SNAPSHOT_CREATED",
        f"{words}.",
        host=run.state.host_id,
        severity=InstanceEvent.SEVERITY_WARNING if crash and wanted else InstanceEvent.SEVERITY_INFO,
    )


def _mib(size: int) -> str:
    """Rounded up: a little is not nothing."""
    return f"{-(-size // (1 << 20))} MiB"


async def fail(run: _Run, _error: RemudaError) -> Ending:
    compare, also = await given_up(run)
    return Ending(compare=compare, also=also)


SAGA = Saga(
    action="SnapshotInstance",
    state=SnapshotState,
    begin=begin,
    steps=(
        Step(
            name="disk_uploaded",
            do=upload_disk,
            undo=give_up_upload,
            host=_host,
            deadline_seconds=LONGEST_SECONDS,
        ),
        Step(
            name="transfer_ended",
            do=end_transfer,
            host=_host_untold,
            deadline_seconds=120.0,
            unreachable=Unreachable.OWE,
            commits=Commit.BY_EVIDENCE,
        ),
    ),
    succeed=succeed,
    fail=fail,
)

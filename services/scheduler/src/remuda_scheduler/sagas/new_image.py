"""The image that a snapshot makes: its record, what its chunks may be named after, and that it goes again.

The api writes the record, UPLOADING, when it admits the operation; the image store makes it ACTIVE at the
agent's CommitImage. So the record is looked at, and nobody's word counts. An image that shall not be is
marked DELETING here; the image store removes what there is of it, and gives its project the charge back.
"""

from typing import NamedTuple

from remuda.image.v1.image_pb2 import Image
from remuda.store.v1.image_pb2 import ImageRecord
from remuda.store.v1.instance_pb2 import InstanceRecord
from remuda.store.v1.saga_pb2 import SnapshotState
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.ids import ImageId, ProjectId
from remuda_core.images.charging import plan_charge
from remuda_core.names import image_name, instance_name

from remuda_scheduler.engine.run import Run

_Run = Run[SnapshotState]

READABLE = 16
"""Images that one grant lets be read, at most: each is asked for every chunk."""

_LIMIT_FACTOR = 2
"""Times the disk's size, where no quota says less: an attempt that broke off has sent chunks of another
moment, which count until they are collected.
"""


class Seen(NamedTuple):
    record: ImageRecord
    revision: int

    @property
    def active(self) -> bool:
        return self.record.image.state == Image.STATE_ACTIVE


async def look_at_image(run: _Run) -> Seen:
    """Raises IMAGE_NOT_FOUND when somebody has deleted it."""
    seen = await _read(run)
    if seen is None or seen.record.image.state == Image.STATE_DELETING:
        raise RemudaError(Reason.IMAGE_NOT_FOUND, "the image was deleted while it was made")
    return seen


async def image_made(run: _Run) -> Image:
    """As clients see it. One that was deleted by now is DELETING."""
    seen = await _read(run)
    image = Image(state=Image.STATE_DELETING)
    if seen is not None:
        image.CopyFrom(seen.record.image)
        image.etag = str(seen.revision)
    image.name = image_name(run.project, _image(run))
    image.uid = _image(run)
    return image


async def give_up_image(run: _Run) -> bool:
    """The image store does not make it ACTIVE any more. False: it is ACTIVE already, and stays."""
    while (seen := await _read(run)) is not None:
        if seen.active:
            return False
        if seen.record.image.state == Image.STATE_DELETING:
            return True
        compare, put = _marked(run, seen)
        if await run.commit(compare=[compare], also=[put]):
            return True
    return True


async def given_up(run: _Run) -> tuple[tuple[ops.Compare, ...], tuple[ops.Op, ...]]:
    """The same for the operation's last txn: an operation that never began has nothing that is undone."""
    seen = await _read(run)
    if seen is None or seen.record.image.state in (Image.STATE_ACTIVE, Image.STATE_DELETING):
        return (), ()
    compare, put = _marked(run, seen)
    return (compare,), (put,)


def readable_images(run: _Run, record: InstanceRecord) -> list[str]:
    """The base first, then the newest snapshots of this instance.

    From the cache: one that was made a moment ago and is not there yet costs bytes and nothing else.
    """
    source = instance_name(run.project, run.instance_id)

    def earlier(entry: Entry[ImageRecord]) -> bool:
        image = entry.value
        mine = image.project == run.project and image.image.source.instance == source
        return mine and image.image.state == Image.STATE_ACTIVE and image.id != record.image_id

    found = sorted(
        filter(earlier, run.services.store.images.items()),
        key=lambda entry: entry.value.image.create_time.ToNanoseconds(),
        reverse=True,
    )
    return [record.image_id, *(entry.value.id for entry in found[: READABLE - 1])]


async def byte_limit(run: _Run, disk_bytes: int) -> int:
    """What the project may still store, or more than this disk can come to."""
    seen = await look_at_image(run)
    charge = seen.record.charge
    project = ProjectId(seen.record.project)
    services = run.services
    plan = await plan_charge(services.etcd, services.keys, project, before=charge, after=charge)
    most = _LIMIT_FACTOR * disk_bytes
    return most if plan.left_stored_bytes is None else min(most, plan.left_stored_bytes)


def _image(run: _Run) -> ImageId:
    return ImageId(run.record.image_id)


async def _read(run: _Run) -> Seen | None:
    seen = await run.services.etcd.get(run.services.keys.image(_image(run)))
    return None if seen is None else Seen(ImageRecord.FromString(seen.value), seen.mod_revision)


def _marked(run: _Run, seen: Seen) -> tuple[ops.Compare, ops.Op]:
    record = ImageRecord()
    record.CopyFrom(seen.record)
    record.image.state = Image.STATE_DELETING
    key = run.services.keys.image(_image(run))
    return ops.mod_is(key, seen.revision), ops.put(key, record.SerializeToString(deterministic=True))

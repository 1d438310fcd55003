"""The image store's part in a snapshot, as small as tests need it."""

from remuda.agent.v1.agent_pb2 import SnapshotDisk
from remuda.image.v1.chunk_pb2 import Grant
from remuda.image.v1.image_pb2 import Image
from remuda.image.v1.source_pb2 import ImageSource
from remuda.store.v1.image_pb2 import ImageRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.ids import ImageId, ProjectId
from remuda_core.images.charging import plan_charge


async def commit_image(etcd: Etcd, keys: Keys, work: SnapshotDisk, source: ImageSource) -> None:
    """UPLOADING becomes ACTIVE. Raises GRANT_REFUSED, IMAGE_NOT_FOUND, IMAGE_NOT_ACTIVE."""
    if Grant.FromString(work.grant.grant).writable_image != work.image_id:
        raise RemudaError(Reason.GRANT_REFUSED, "for another image")
    key = keys.image(ImageId(work.image_id))
    while True:
        seen = await etcd.get(key)
        if seen is None:
            raise RemudaError(Reason.IMAGE_NOT_FOUND, f"image {work.image_id} does not exist")
        record = ImageRecord.FromString(seen.value)
        if record.image.state != Image.STATE_UPLOADING:
            raise RemudaError(Reason.IMAGE_NOT_ACTIVE, Image.State.Name(record.image.state))
        before = ImageRecord.FromString(seen.value).charge
        record.image.state = Image.STATE_ACTIVE
        record.image.source.MergeFrom(source)
        record.charge.stored_bytes = source.counts.stored_bytes
        plan = await plan_charge(etcd, keys, ProjectId(record.project), before=before, after=record.charge)
        result = await etcd.txn(
            compare=[ops.mod_is(key, seen.mod_revision), *plan.compare],
            success=[ops.put(key, record.SerializeToString()), *plan.success],
        )
        if result.succeeded:
            return

"""What the api does when it admits a snapshot, and what there is of an instance's snapshots."""

import uuid

from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1.image_pb2 import Image
from remuda.store.v1.image_pb2 import ImageCharge, ImageRecord
from remuda_core.etcd import ops
from remuda_core.ids import ImageId, InstanceId, OperationId
from remuda_core.images.charging import plan_charge
from remuda_core.names import instance_name

from remuda_scheduler.engine.clock import now
from remuda_scheduler.testing.cluster import PROJECT, Cluster

DISK_BYTES = 1 << 30


async def admit_snapshot(
    cluster: Cluster,
    instance: InstanceId,
    *,
    quiesce: "SnapshotInstanceRequest.Quiesce.ValueType" = SnapshotInstanceRequest.QUIESCE_IF_POSSIBLE,
) -> OperationId:
    record = image_record(instance)
    plan = await plan_charge(cluster.etcd, cluster.keys, PROJECT, after=record.charge)
    image = ImageId(record.id)
    put = ops.put(cluster.keys.image(image), record.SerializeToString())
    request = SnapshotInstanceRequest(name=instance_name(PROJECT, instance), quiesce=quiesce)
    return await cluster.admit("SnapshotInstance", instance, request, also=[put, *plan.success], image=image)


def image_record(instance: InstanceId, state: Image.State.ValueType = Image.STATE_UPLOADING) -> ImageRecord:
    record = ImageRecord(
        id=str(uuid.uuid4()),
        project=PROJECT,
        charge=ImageCharge(virtual_bytes=DISK_BYTES),
        image=Image(display_name="snap", state=state, virtual_bytes=DISK_BYTES, create_time=now()),
    )
    record.image.source.instance = instance_name(PROJECT, instance)
    return record


async def images_of(cluster: Cluster, instance: InstanceId) -> list[ImageRecord]:
    found = (await cluster.etcd.range_prefix(cluster.keys.images)).kvs
    records = [ImageRecord.FromString(kv.value) for kv in found]
    return [one for one in records if one.image.source.instance == instance_name(PROJECT, instance)]

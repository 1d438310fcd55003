"""What the transaction that makes an image holds: record, name and charge; of an upload, or of a snapshot."""

from dataclasses import dataclass

from remuda.image.v1 import image_pb2 as public
from remuda.store.v1 import image_pb2 as records
from remuda.store.v1 import instance_pb2
from remuda_core import names
from remuda_core.errors import already_exists
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.ids import ImageId, OperationId, ProjectId
from remuda_core.images.charging import plan_charge
from remuda_core.names import InstanceName

from remuda_api.admission.operations import now
from remuda_api.store.images import image_message
from remuda_api.store.instances import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """Planned at one moment: to be planned anew when the transaction loses."""

    record: records.ImageRecord
    key: str
    compare: tuple[ops.Compare, ...]
    success: tuple[ops.Op, ...]

    @property
    def message(self) -> public.Image:
        return image_message(Entry(key=self.key, value=self.record, create_revision=0, mod_revision=0))


async def plan_image(etcd: Etcd, keys: Keys, record: records.ImageRecord) -> NewImage:
    """The record, charged with what it says in `charge`. Raises ALREADY_EXISTS, QUOTA_EXCEEDED."""
    project, image = ProjectId(record.project), ImageId(record.id)
    key, name_key = keys.image(image), keys.image_name(project, record.image.display_name)
    if (taken := await etcd.get(name_key)) is not None:
        other = names.image_name(project, ImageId(taken.value.decode()))
        raise already_exists(other, f"{other} has the display name {record.image.display_name}")
    charging = await plan_charge(etcd, keys, project, after=record.charge)
    return NewImage(
        record=record,
        key=key,
        compare=(ops.absent(key), ops.absent(name_key), *charging.compare),
        success=(
            ops.put(key, record.SerializeToString(deterministic=True)),
            ops.put(name_key, image.encode()),
            *charging.success,
        ),
    )


async def plan_snapshot(
    etcd: Etcd,
    keys: Keys,
    *,
    image: ImageId,
    display_name: str,
    instance: InstanceName,
    owned: instance_pb2.InstanceRecord,
    operation: OperationId,
) -> NewImage:
    """The image that `operation` fills from the instance's disk. Raises as `plan_image` does."""
    based_on = await etcd.get(keys.image(ImageId(owned.image_id)))
    # It is there as long as the instance refers to it; without it nothing is known of the guest.
    inherited = records.ImageRecord.FromString(based_on.value).image if based_on else public.Image()
    record = records.ImageRecord(
        id=image,
        project=instance.project,
        operation_id=operation,
        charge=records.ImageCharge(virtual_bytes=owned.disk_bytes),
        image=public.Image(
            display_name=display_name,
            state=public.Image.STATE_UPLOADING,
            # There is no file: the agent sends chunks of the virtual disk, which is what a raw file holds.
            format=public.Image.FORMAT_RAW,
            file_bytes=owned.disk_bytes,
            virtual_bytes=owned.disk_bytes,
            # Rounded up: a flavor's disk is whole GiB.
            min_disk_gib=-(-owned.disk_bytes // GIB),
            min_memory_mib=inherited.min_memory_mib,
            architecture=inherited.architecture,
            guest_agent=inherited.guest_agent,
            visibility=public.Image.VISIBILITY_PRIVATE,
            create_time=now(),
        ),
    )
    record.image.source.instance = str(instance)
    return await plan_image(etcd, keys, record)

"""Images."""

from remuda.image.v1 import image_pb2 as public
from remuda.store.v1 import image_pb2 as records
from remuda_core.etcd.cache import Entry
from remuda_core.ids import ImageId, ProjectId
from remuda_core.names import image_name


def image_message(entry: Entry[records.ImageRecord]) -> public.Image:
    record = entry.value
    message = public.Image()
    message.CopyFrom(record.image)
    message.name = image_name(ProjectId(record.project), ImageId(record.id))
    message.uid = record.id
    message.etag = str(entry.mod_revision) if entry.mod_revision else ""
    return message

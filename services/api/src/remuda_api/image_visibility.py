"""Which images a project may use, and what others are shown of them. Pure."""

from remuda.image.v1.image_pb2 import Image
from remuda.store.v1.image_pb2 import ImageRecord
from remuda_core.auth.caller import Caller
from remuda_core.etcd.cache import Entry
from remuda_core.ids import ProjectId
from remuda_core.names import project_name

from remuda_api.store.images import image_message


def usable_by(project: ProjectId, record: ImageRecord) -> bool:
    """Its own whatever their state is; those of others that they share, as long as they are ACTIVE."""
    return record.project == project or (
        _is_public(record)
        or (
            record.image.visibility == Image.VISIBILITY_SHARED
            and record.image.state == Image.STATE_ACTIVE
            and project_name(project) in record.image.shared_with
        )
    )


def readable_by(caller: Caller, record: ImageRecord) -> bool:
    """One of the caller's projects may use it. To boot from it the instance's own project has to."""
    return (
        caller.may_see(ProjectId(record.project))
        or _is_public(record)
        or any(usable_by(project, record) for project in caller.projects)
    )


def image_shown_to(caller: Caller, entry: Entry[ImageRecord]) -> Image:
    message = image_message(entry)
    if not caller.may_see(ProjectId(entry.value.project)):
        # What else the owner has, with whom it is shared: none of it helps to boot from it.
        message.ClearField("source")
        message.ClearField("shared_with")
        message.ClearField("status_message")
        message.ClearField("stored_bytes")
    return message


def _is_public(record: ImageRecord) -> bool:
    image = record.image
    return image.visibility == Image.VISIBILITY_PUBLIC and image.state == Image.STATE_ACTIVE

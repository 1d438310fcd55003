"""CreateImage, DeleteImage: the records; the bytes are the image store's."""

import uuid

from google.protobuf.empty_pb2 import Empty
from remuda.image.v1 import image_pb2 as public
from remuda.store.v1 import image_pb2 as records
from remuda_core import names
from remuda_core.errors import Reason, RemudaError, invalid_argument, not_found
from remuda_core.etcd import ops
from remuda_core.ids import ImageId

from remuda_api.admission.etags import check_etag
from remuda_api.admission.image_updates import PROPERTIES, check_sharing
from remuda_api.admission.mutations import Answer, Mutations, Plan
from remuda_api.admission.new_images import plan_image
from remuda_api.admission.operations import now
from remuda_api.admission.requests import Call
from remuda_api.admission.resolving import Resolver, check_display_name

# What a client says about the image; everything else is the store's to find out.
_GIVEN = ("display_name", "format", "file_bytes", "sha256", *PROPERTIES)


class ImageAdmission:
    def __init__(self, mutations: Mutations, resolver: Resolver) -> None:
        self._mutations = mutations
        self._keys = mutations.keys
        self._resolver = resolver

    async def create(self, call: Call, request: public.CreateImageRequest) -> Answer[public.Image]:
        project = names.parse_project(request.parent)
        check_display_name(request.image.display_name, "image.display_name")
        _check_file(request.image)
        check_sharing(request.image)
        image = ImageId(str(uuid.uuid4()))
        record = records.ImageRecord(id=image, project=project)
        for field in _GIVEN:
            setattr(record.image, field, getattr(request.image, field))
        record.image.visibility = request.image.visibility or public.Image.VISIBILITY_PRIVATE
        record.image.shared_with.extend(sorted(set(request.image.shared_with)))
        record.image.state = public.Image.STATE_UPLOADING
        record.image.create_time.CopyFrom(now())
        if record.image.format == public.Image.FORMAT_RAW:
            # Of a qcow2 nothing is known yet: the store charges what it finds.
            record.charge.virtual_bytes = record.image.file_bytes
        record.charge.SetInParent()

        async def attempt() -> Plan[public.Image]:
            planned = await plan_image(self._mutations.etcd, self._keys, record)
            return Plan(
                response=planned.message,
                compare=planned.compare,
                success=planned.success,
                witness=planned.key,
            )

        return await self._mutations.run(call, attempt, public.Image)

    async def delete(self, call: Call, request: public.DeleteImageRequest) -> Answer[Empty]:
        """Marks it; the image store removes what it has, and then the record."""

        async def attempt() -> Plan[Empty]:
            name = await self._resolver.image(request.name)
            key, refs = self._keys.image(name.image), self._keys.image_refs(name.image)
            seen = await self._mutations.etcd.get(key)
            record = records.ImageRecord.FromString(seen.value) if seen else None
            if seen is None or record is None or record.project != name.project:
                raise not_found(request.name)
            check_etag(str(name), request.etag, seen)
            if record.image.state == public.Image.STATE_DELETING:
                return Plan(response=Empty())
            if users := await self._mutations.etcd.count(refs):
                raise RemudaError(
                    Reason.IMAGE_IN_USE,
                    f"{users} instances are based on {name}",
                    metadata={"instances": str(users)},
                )
            record.image.state = public.Image.STATE_DELETING
            return Plan(
                response=Empty(),
                compare=[ops.mod_is(key, seen.mod_revision), ops.absent_prefix(refs)],
                success=[ops.put(key, record.SerializeToString(deterministic=True))],
                witness=key,
            )

        return await self._mutations.run(call, attempt, Empty)


def _check_file(image: public.Image) -> None:
    """Raises RemudaError INVALID_ARGUMENT."""
    if not image.format:
        raise invalid_argument("image.format", "is required")
    if not image.file_bytes:
        raise invalid_argument("image.file_bytes", "is required: how large the file is")

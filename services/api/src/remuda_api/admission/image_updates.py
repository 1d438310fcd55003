"""UpdateImage: what the owner may change at once, without an operation."""

from collections.abc import Sequence

from remuda.image.v1 import image_pb2 as public
from remuda.store.v1 import image_pb2 as records
from remuda_core import names
from remuda_core.errors import (
    Reason,
    RemudaError,
    Violation,
    already_exists,
    invalid_argument,
    not_found,
    permission_denied,
)
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.ids import ImageId
from remuda_core.names import ImageName
from remuda_core.rpc.context import caller

from remuda_api.admission.etags import check_etag
from remuda_api.admission.mutations import Answer, Mutations, Plan
from remuda_api.admission.requests import Call
from remuda_api.admission.resolving import Resolver, check_display_name
from remuda_api.store.images import image_message

PROPERTIES = ("min_disk_gib", "min_memory_mib", "architecture", "guest_agent", "rescue")
"""What an image says about its guests."""
_FIELDS = frozenset({"display_name", "visibility", "shared_with", *PROPERTIES})
_ALL_FIELDS = "*"
_MOST_PATHS = 128
# Whoever fills an image, or removes it, writes its record, and would find it changed.
_SETTLED = (public.Image.STATE_ACTIVE, public.Image.STATE_FAILED)


class ImageUpdates:
    def __init__(self, mutations: Mutations, resolver: Resolver) -> None:
        self._mutations = mutations
        self._keys = mutations.keys
        self._resolver = resolver

    async def update(self, call: Call, request: public.UpdateImageRequest) -> Answer[public.Image]:
        fields = _fields(request.update_mask.paths)
        if "display_name" in fields:
            check_display_name(request.image.display_name, "image.display_name")

        async def attempt() -> Plan[public.Image]:
            return await self._attempt(request.image, fields)

        return await self._mutations.run(call, attempt, public.Image)

    async def _attempt(self, wanted: public.Image, fields: frozenset[str]) -> Plan[public.Image]:
        name = await self._resolver.image(wanted.name, field="image.name")
        key = self._keys.image(name.image)
        kv = await self._mutations.etcd.get(key)
        before = records.ImageRecord.FromString(kv.value) if kv else None
        if kv is None or before is None or before.project != name.project:
            raise not_found(wanted.name)
        check_etag(str(name), wanted.etag, kv)
        after = _changed(before, wanted, fields)
        check_sharing(after.image)
        _check_public(before.image, after.image)
        unchanged = after == before
        # An etag of 0 stands for the revision that this change gets.
        revision = kv.mod_revision if unchanged else 0
        entry = Entry(key=key, value=after, create_revision=kv.create_revision, mod_revision=revision)
        if unchanged:
            return Plan(response=image_message(entry))
        if before.image.state not in _SETTLED:
            state = public.Image.State.Name(before.image.state).removeprefix("STATE_")
            raise RemudaError(
                Reason.STATE_FORBIDS_ACTION,
                f"{name} is {state}: it can be changed when it is ACTIVE or FAILED",
                metadata={"state": state},
                violations=[Violation(str(name), f"is {state}")],
            )
        compare, success = await self._rename(name, before.image.display_name, after.image.display_name)
        return Plan(
            response=image_message(entry),
            compare=[ops.mod_is(key, kv.mod_revision), *compare],
            success=[ops.put(key, after.SerializeToString(deterministic=True)), *success],
            witness=key,
        )

    async def _rename(self, name: ImageName, old: str, new: str) -> tuple[list[ops.Compare], list[ops.Op]]:
        if new == old:
            return [], []
        old_key = self._keys.image_name(name.project, old)
        new_key = self._keys.image_name(name.project, new)
        taken = await self._mutations.etcd.get(new_key)
        if taken is not None:
            other = names.image_name(name.project, ImageId(taken.value.decode()))
            raise already_exists(other, f"{other} has the display name {new}")
        return [ops.absent(new_key)], [ops.delete(old_key), ops.put(new_key, name.image.encode())]


def check_sharing(image: public.Image) -> None:
    """Raises RemudaError INVALID_ARGUMENT for projects in `shared_with` that could not use it anyway."""
    for project in image.shared_with:
        names.parse_project(project, field="image.shared_with")
    if image.shared_with and image.visibility != public.Image.VISIBILITY_SHARED:
        raise invalid_argument("image.shared_with", "is for images with visibility SHARED")


def _check_public(before: public.Image, after: public.Image) -> None:
    wanted = public.Image.VISIBILITY_PUBLIC
    if after.visibility == wanted != before.visibility and not caller().is_admin:
        raise permission_denied(
            "making an image public needs the admin role", field="image.visibility", role="admin"
        )


def _changed(
    before: records.ImageRecord, wanted: public.Image, fields: frozenset[str]
) -> records.ImageRecord:
    after = records.ImageRecord()
    after.CopyFrom(before)
    for field in fields - {"shared_with"}:
        setattr(after.image, field, getattr(wanted, field))
    after.image.visibility = after.image.visibility or public.Image.VISIBILITY_PRIVATE
    if "shared_with" in fields:
        after.image.ClearField("shared_with")
        after.image.shared_with.extend(sorted(set(wanted.shared_with)))
    elif after.image.visibility != public.Image.VISIBILITY_SHARED:
        # Shared anew one day, it is shared with whom it is then given to.
        after.image.ClearField("shared_with")
    return after


def _fields(paths: Sequence[str]) -> frozenset[str]:
    """Raises RemudaError INVALID_ARGUMENT for a path that UpdateImage does not know."""
    if len(paths) > _MOST_PATHS:
        raise invalid_argument("update_mask", f"has more than {_MOST_PATHS} paths")
    if not paths or _ALL_FIELDS in paths:
        return _FIELDS
    for path in paths:
        if path not in _FIELDS:
            raise invalid_argument("update_mask", f"{path} cannot be changed by UpdateImage")
    return frozenset(paths)

"""Records of images and uploads in etcd: found by name, changed by compare-and-swap.

The api creates image records and marks them DELETING; this service fills and removes them.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from remuda.image.v1 import image_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason, RemudaError, not_found
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.etcd.model import TxnResult
from remuda_core.ids import ImageId, ProjectId
from remuda_core.images.charging import plan_charge
from remuda_core.images.chunks import Digest
from remuda_core.names import image_name, parse_image

Image = image_pb2.Image

# Of a transaction that loses against charges of the project's other images.
_TRIES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An image's record as it stood at `revision`."""

    record: store_pb2.ImageRecord
    revision: int

    @property
    def id(self) -> ImageId:
        return ImageId(self.record.id)

    @property
    def state(self) -> "Image.State.ValueType":
        return self.record.image.state

    @property
    def name(self) -> str:
        return image_name(ProjectId(self.record.project), self.id)

    @property
    def manifest_digest(self) -> Digest | None:
        """None: it has none yet."""
        text = self.record.image.manifest_digest
        return Digest(bytes.fromhex(text)) if text else None

    def public(self) -> Image:
        """As clients see it."""
        image = Image()
        image.CopyFrom(self.record.image)
        image.name, image.uid, image.etag = self.name, self.id, str(self.revision)
        return image


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadState:
    record: store_pb2.UploadRecord
    revision: int
    """0: there is no record yet."""


class Changed(Exception):
    """Somebody else has changed the record since it was read."""


class Records:
    """Reads go to etcd: they are few, and an upload follows its image's creation at once."""

    def __init__(self, etcd: Etcd, keys: Keys) -> None:
        self._etcd = etcd
        self.keys = keys

    async def by_name(self, name: str) -> Found:
        """`name` may end with the UUID or with the display name. Raises IMAGE_NOT_FOUND."""
        project, last = parse_image(name)
        image = last if _is_uuid(last) else await self._by_display_name(project, last)
        found = None if image is None else await self.by_id(image)
        if found is None or found.record.project != project:
            raise not_found(name)
        return found

    async def _by_display_name(self, project: ProjectId, display_name: str) -> ImageId | None:
        kv = await self._etcd.get(self.keys.image_name(project, display_name))
        return None if kv is None else ImageId(kv.value.decode())

    async def by_id(self, image: ImageId) -> Found | None:
        kv = await self._etcd.get(self.keys.image(image))
        if kv is None:
            return None
        return Found(record=store_pb2.ImageRecord.FromString(kv.value), revision=kv.mod_revision)

    async def all(self) -> list[Found]:
        """Every image, at one revision of etcd."""
        return [
            Found(record=store_pb2.ImageRecord.FromString(kv.value), revision=kv.mod_revision)
            async for page in self._etcd.pages(self.keys.images)
            for kv in page.kvs
        ]

    async def referenced(self, image: ImageId) -> bool:
        """Whether an instance is based on it."""
        return await self._etcd.count(self.keys.image_refs(image)) > 0

    async def change(
        self,
        found: Found,
        edit: Callable[[Image], None],
        *,
        charge: store_pb2.ImageCharge | None = None,
        compare: Sequence[ops.Compare] = (),
        success: Sequence[ops.Op] = (),
    ) -> Found:
        """The record with `edit` applied, charged with `charge` from now on (None: as before).

        Raises Changed when it, or what `compare` is about, has changed; QUOTA_EXCEEDED for a charge that
        grows beyond the project's limit.
        """
        record = store_pb2.ImageRecord()
        record.CopyFrom(found.record)
        edit(record.image)
        if charge is not None:
            record.charge.CopyFrom(charge)
        key, value = self.keys.image(found.id), record.SerializeToString(deterministic=True)
        result = await self._charged(
            found,
            charge,
            [ops.mod_is(key, found.revision), *compare],
            [ops.put(key, value), *success],
            keep=charge is None,
            witness=key,
        )
        return Found(record=record, revision=result.revision)

    async def _charged(
        self,
        found: Found,
        charge: store_pb2.ImageCharge | None,
        compare: Sequence[ops.Compare],
        success: Sequence[ops.Op],
        *,
        keep: bool,
        witness: str | None,
    ) -> TxnResult:
        """The transaction, with the project's usage in it unless the charge is to `keep` as it is."""
        before = found.record.charge if found.record.HasField("charge") else None
        project = ProjectId(found.record.project)
        for _ in range(_TRIES):
            plan = (
                None
                if keep or (before is None and charge is None)
                else await plan_charge(self._etcd, self.keys, project, before=before, after=charge)
            )
            result = await self._etcd.txn(
                compare=[*compare, *(plan.compare if plan else ())],
                success=[*success, *(plan.success if plan else ())],
                witness=witness,
            )
            if result.succeeded:
                return result
            now = await self.by_id(found.id)
            if plan is None or now is None or now.revision != found.revision:
                break
            # Another image of the project was charged meanwhile, most likely.
        raise Changed(found.name)

    async def remove(self, found: Found, *, compare: Sequence[ops.Compare]) -> None:
        """The record, its upload, its name if that is still its own; its charge is given back.

        Raises Changed.
        """
        key = self.keys.image(found.id)
        name = self.keys.image_name(ProjectId(found.record.project), found.record.image.display_name)
        claim = await self._etcd.get(name)
        await self._charged(
            found,
            None,
            [ops.mod_is(key, found.revision), *compare],
            [
                ops.delete(key),
                ops.delete(self.keys.upload(found.id)),
                *([ops.delete(name)] if claim is not None and claim.value == found.id.encode() else []),
            ],
            keep=False,
            witness=None,
        )

    # --- uploads ---

    async def upload(self, image: ImageId) -> UploadState:
        kv = await self._etcd.get(self.keys.upload(image))
        if kv is None:
            return UploadState(record=store_pb2.UploadRecord(image_id=image), revision=0)
        return UploadState(record=store_pb2.UploadRecord.FromString(kv.value), revision=kv.mod_revision)

    async def advance(
        self, found: Found, state: UploadState, *, segment: str, offset: int, committed: int
    ) -> UploadState:
        """`segment` holds the bytes from `offset` on, and all up to `committed` are safe.

        Raises Changed when another stream goes on with this upload, or the image is not as `found` any more.
        """
        record = store_pb2.UploadRecord()
        record.CopyFrom(state.record)
        if not record.segments or record.segments[-1].id != segment:
            record.segments.add(id=segment, offset=offset)
        record.committed_bytes = committed
        record.update_time.GetCurrentTime()
        key, value = self.keys.upload(found.id), record.SerializeToString(deterministic=True)
        result = await self._etcd.txn(
            compare=[
                ops.mod_is(key, state.revision),
                ops.mod_is(self.keys.image(found.id), found.revision),
            ],
            success=[ops.put(key, value)],
            witness=key,
        )
        if not result.succeeded:
            raise Changed(f"upload of {found.name}")
        return UploadState(record=record, revision=result.revision)

    async def rewind(self, found: Found, committed: int) -> None:
        """The image is UPLOADING again, from `committed` on. Raises Changed."""
        state = await self.upload(found.id)
        upload, record = store_pb2.UploadRecord(), store_pb2.ImageRecord()
        upload.CopyFrom(state.record)
        record.CopyFrom(found.record)
        kept = [segment for segment in upload.segments if segment.offset < committed]
        del upload.segments[:]
        upload.segments.extend(kept)
        upload.committed_bytes = committed
        record.image.state = Image.STATE_UPLOADING
        record.image.status_message = ""
        record.image.ClearField("manifest_digest")
        keys = self.keys.upload(found.id), self.keys.image(found.id)
        result = await self._etcd.txn(
            compare=[ops.mod_is(keys[0], state.revision), ops.mod_is(keys[1], found.revision)],
            success=[
                ops.put(key, message.SerializeToString(deterministic=True))
                for key, message in zip(keys, (upload, record), strict=True)
            ],
            witness=keys[1],
        )
        if not result.succeeded:
            raise Changed(found.name)


def no_longer(found: Found, wanted: str) -> RemudaError:
    state = Image.State.Name(found.state).removeprefix("STATE_")
    return RemudaError(
        Reason.IMAGE_NOT_ACTIVE if wanted == "ACTIVE" else Reason.STATE_FORBIDS_ACTION,
        f"{found.name} is {state}, not {wanted}",
        metadata={"image": found.name, "state": state},
    )


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False

"""The one way to ACTIVE: every chunk that the manifest names is in the store, and the sweeper knows it.

The record is PENDING with its manifest's digest before this begins, so that its chunks count as referenced.
What was removed until then shows as lacking here, and nothing is removed between this look and ACTIVE: both
happen under the sweep lock.
"""

from collections.abc import Awaitable, Callable, Sequence

from remuda.image.v1 import image_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.images.chunks import Digest
from remuda_core.images.manifest import Manifest

from remuda_image_store.content import Content
from remuda_image_store.records import Changed, Found, Image, Records
from remuda_image_store.sweep_lock import sweep_lock


class Incomplete(RemudaError):
    """IMAGE_INCOMPLETE, with the chunks that are not in the store."""

    def __init__(self, lacking: set[Digest]) -> None:
        super().__init__(
            Reason.IMAGE_INCOMPLETE,
            f"{len(lacking)} of the image's chunks are not in the store",
            metadata={"lacking": str(len(lacking))},
        )
        self.lacking = frozenset(lacking)


class Activation:
    def __init__(self, etcd: Etcd, records: Records, content: Content, *, holder: str) -> None:
        """`holder` names this replica in the locks."""
        self._etcd = etcd
        self._records = records
        self._content = content
        self._holder = holder

    async def activate(
        self,
        pending: Found,
        manifest: Manifest,
        *,
        put_again: Callable[[set[Digest]], Awaitable[None]] | None = None,
        edit: Callable[[image_pb2.Image], None] | None = None,
        charge: store_pb2.ImageCharge | None = None,
        compare: Sequence[ops.Compare] = (),
        success: Sequence[ops.Op] = (),
    ) -> Found:
        """The ACTIVE image. Its upload's key goes in the same transaction.

        `pending`: PENDING, with the digest of `manifest`, as it was written; `put_again` stores the chunks
        that it is given once more; `edit`, `charge`, `compare`, `success`: as in `Records.change`.
        Raises Incomplete when chunks are not there and cannot be put again (the record is PENDING still: send
        them, and call this again), Changed when the record is not `pending` any more, QUOTA_EXCEEDED for the
        charge, STORE_UNAVAILABLE.
        """

        def make_active(image: image_pb2.Image) -> None:
            image.state = Image.STATE_ACTIVE
            image.status_message = ""
            if edit is not None:
                edit(image)

        async with sweep_lock(self._etcd, self._records.keys.image_sweep, self._holder) as lock:
            now = await self._records.by_id(pending.id)
            if now is None or now.revision != pending.revision:
                # Being deleted, or gone with its chunks: what is put from here on would be nobody's.
                raise Changed(pending.name)
            await self._ensure(manifest, put_again)
            # Again, and after PENDING: the same manifest may have gone with another image until then.
            await self._content.put_manifest(manifest)
            return await self._records.change(
                pending,
                make_active,
                charge=charge,
                compare=[lock.fence, *compare],
                success=[ops.delete(self._records.keys.upload(pending.id)), *success],
            )

    async def _ensure(
        self, manifest: Manifest, put_again: Callable[[set[Digest]], Awaitable[None]] | None
    ) -> None:
        digests = manifest.lengths()
        lacking = await self._content.lacking(digests)
        if not lacking:
            return
        if put_again is None:
            raise Incomplete(lacking)
        await put_again(lacking)
        if await self._content.lacking(digests):
            raise RemudaError(Reason.STORE_UNAVAILABLE, "the backend does not keep what it was given")

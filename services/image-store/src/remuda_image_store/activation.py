"""The one way to ACTIVE: every chunk that the manifest names is in the store, and stays.

The names that may be removed are read first, then every chunk is looked for under a name that may not; the
transaction to ACTIVE compares that no name was doomed since. A sweeper dooms first and reads the manifests of
images then (blob_names.py): either it sees this image, or its doom is seen here. Nobody waits for anybody.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence

from remuda.image.v1 import image_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.images.chunks import Digest
from remuda_core.images.manifest import Manifest

from remuda_image_store.blob_names import nothing_doomed_since, read_names, shard_of
from remuda_image_store.content import Content
from remuda_image_store.records import Changed, Found, Image, Records

# Each after a doom that was written while chunks were looked for, or charges of the project's other images.
_TRIES = 32


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
    def __init__(self, etcd: Etcd, records: Records, content: Content) -> None:
        self._etcd = etcd
        self._records = records
        self._content = content

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

        everything = manifest.lengths().keys()
        wanted: Collection[Digest] = everything
        for _ in range(_TRIES):
            names = await read_names(self._etcd, self._records.keys)
            await self._check(pending)
            # What is put from here on gets a name that is not doomed.
            await self._content.names.reach(names.revision)
            lacking = await self._content.lacking(wanted, names)
            await self._content.put_manifest(manifest)
            if lacking:
                if put_again is None:
                    raise Incomplete(lacking)
                await put_again(set(lacking))
            else:
                try:
                    return await self._records.change(
                        pending,
                        make_active,
                        charge=charge,
                        compare=[nothing_doomed_since(self._records.keys, names.revision), *compare],
                        success=[ops.delete(self._records.keys.upload(pending.id)), *success],
                    )
                except Changed:
                    await self._check(pending)
            # What was found is there still, but in shards where something was doomed since.
            doomed = (await read_names(self._etcd, self._records.keys)).shards_since(names.revision)
            wanted = lacking.union(digest for digest in everything if shard_of(digest) in doomed)
        raise RemudaError(
            Reason.STORE_UNAVAILABLE,
            "the image's chunks do not stay in the store" if wanted else "something else has changed",
            retry_after_seconds=1.0,
        )

    async def _check(self, pending: Found) -> None:
        """Raises Changed."""
        now = await self._records.by_id(pending.id)
        if now is None or now.revision != pending.revision:
            # Being deleted, or gone with its chunks: what is put from here on would be nobody's.
            raise Changed(pending.name)

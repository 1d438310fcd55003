"""remuda.image.v1.ChunkService: manifests and chunks for agents that show a grant.

A chunk is only given as part of an image that the grant covers: its digest must stand in that image's
manifest. Otherwise whoever guesses a digest would learn what other projects' disks hold.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from remuda.image.v1 import chunk_pb2, chunk_pb2_grpc
from remuda_core.auth import grants
from remuda_core.errors import Reason, RemudaError, invalid_argument
from remuda_core.ids import ImageId
from remuda_core.images.chunks import Digest
from remuda_core.rpc import context as rpc
from remuda_core.telemetry.metrics import Metrics

from remuda_image_store.content import Content
from remuda_image_store.records import Image, Records, no_longer

_FRAME_BYTES = 1 << 20
_KEPT_MANIFESTS = 16
# An image that waits for its removal while an instance is based on it is still fetched.
_READABLE = (Image.STATE_ACTIVE, Image.STATE_DELETING)


class Chunks(chunk_pb2_grpc.ChunkServiceServicer):
    def __init__(
        self, records: Records, content: Content, grant_key: Ed25519PublicKey, metrics: Metrics
    ) -> None:
        self._records = records
        self._content = content
        self._grant_key = grant_key
        self._moved = metrics.image_bytes
        self._names: OrderedDict[Digest, frozenset[Digest]] = OrderedDict()

    async def GetManifest(
        self, request: chunk_pb2.GetManifestRequest, context: object
    ) -> chunk_pb2.GetManifestResponse:
        digest = await self._granted(request.grant, ImageId(request.image_id))
        return chunk_pb2.GetManifestResponse(manifest=await self._content.manifest_blob(digest))

    async def ReadChunks(
        self, request: chunk_pb2.ReadChunksRequest, context: object
    ) -> AsyncIterator[chunk_pb2.ReadChunksResponse]:
        names = await self._names_in(await self._granted(request.grant, ImageId(request.image_id)))
        wanted = [Digest(digest) for digest in request.digests]
        if not names.issuperset(wanted):
            raise invalid_argument("digests", "not all of them are chunks of this image")
        for digest in wanted:
            stored = await self._content.stored_chunk(digest)
            self._moved.labels("fetched").inc(len(stored.data))
            for at in range(0, len(stored.data), _FRAME_BYTES):
                yield chunk_pb2.ReadChunksResponse(
                    digest=digest,
                    data=stored.data[at : at + _FRAME_BYTES],
                    last=at + _FRAME_BYTES >= len(stored.data),
                    encoding=chunk_pb2.ReadChunksResponse.Encoding.ValueType(stored.encoding),
                )

    async def _granted(self, signed: chunk_pb2.SignedGrant, image: ImageId) -> Digest:
        """The digest of the image's manifest. Raises GRANT_REFUSED, IMAGE_NOT_FOUND, IMAGE_NOT_ACTIVE."""
        grants.verify(signed, self._grant_key, host=rpc.caller().host_id, image=image)
        found = await self._records.by_id(image)
        if found is None:
            raise RemudaError(Reason.IMAGE_NOT_FOUND, f"image {image} does not exist")
        digest = found.manifest_digest
        if found.state not in _READABLE or digest is None:
            raise no_longer(found, "ACTIVE")
        return digest

    async def _names_in(self, manifest: Digest) -> frozenset[Digest]:
        names = self._names.pop(manifest, None)
        if names is None:
            names = frozenset((await self._content.manifest(manifest)).lengths())
        self._names[manifest] = names
        while len(self._names) > _KEPT_MANIFESTS:
            self._names.popitem(last=False)
        return names

"""remuda.image.v1.ChunkService: manifests and chunks for agents that show a grant.

A chunk is only given as part of an image that the grant covers: its digest must stand in that image's
manifest. Otherwise whoever guesses a digest would learn what other projects' disks hold. The same goes for
what a host may leave out when it fills an image: see `known_chunks`.
"""

from collections.abc import AsyncIterator

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from remuda.image.v1 import chunk_pb2, chunk_pb2_grpc
from remuda_core.auth import grants
from remuda_core.errors import Reason, RemudaError, invalid_argument
from remuda_core.ids import ImageId
from remuda_core.images.chunks import Digest
from remuda_core.rpc import context as rpc
from remuda_core.telemetry.metrics import Metrics

from remuda_image_store import repairing
from remuda_image_store.content import Content
from remuda_image_store.damage import Damage
from remuda_image_store.filling import Filling
from remuda_image_store.known_chunks import READABLE, Lengths
from remuda_image_store.records import Records, no_longer

_FRAME_BYTES = 1 << 20


class Chunks(chunk_pb2_grpc.ChunkServiceServicer):
    def __init__(
        self,
        records: Records,
        content: Content,
        lengths: Lengths,
        filling: Filling,
        damage: Damage,
        grant_key: Ed25519PublicKey,
        metrics: Metrics,
    ) -> None:
        self._records = records
        self._content = content
        self._lengths = lengths
        self._filling = filling
        self._damage = damage
        self._grant_key = grant_key
        self._moved = metrics.image_bytes

    async def GetManifest(
        self, request: chunk_pb2.GetManifestRequest, context: object
    ) -> chunk_pb2.GetManifestResponse:
        digest = await self._granted(request.grant, ImageId(request.image_id))
        return chunk_pb2.GetManifestResponse(manifest=await self._content.manifest_blob(digest))

    async def ReadChunks(
        self, request: chunk_pb2.ReadChunksRequest, context: object
    ) -> AsyncIterator[chunk_pb2.ReadChunksResponse]:
        lengths = await self._lengths.of(await self._granted(request.grant, ImageId(request.image_id)))
        wanted = [Digest(digest) for digest in request.digests]
        if not lengths.keys() >= set(wanted):
            raise invalid_argument("digests", "not all of them are chunks of this image")
        for index, digest in enumerate(wanted):
            # The host verifies what arrives, and asks first for what did not fit. To look at that one here is
            # how any replica hears of damage that only hosts meet; of all of them it would be paid twice.
            if index == 0:
                stored = await self._content.verified_chunk(digest, lengths[digest])
            else:
                stored = await self._content.stored_chunk(digest)
            self._moved.labels("fetched").inc(len(stored.data))
            for at in range(0, len(stored.data), _FRAME_BYTES):
                yield chunk_pb2.ReadChunksResponse(
                    digest=digest,
                    data=stored.data[at : at + _FRAME_BYTES],
                    last=at + _FRAME_BYTES >= len(stored.data),
                    encoding=chunk_pb2.ReadChunksResponse.Encoding.ValueType(stored.encoding),
                )

    async def FindChunks(
        self, request: chunk_pb2.FindChunksRequest, context: object
    ) -> chunk_pb2.FindChunksResponse:
        grant = self._filler(request.grant, request.image_id)
        digests = [Digest(digest) for digest in request.digests]
        return chunk_pb2.FindChunksResponse(lacking=await self._filling.lacking(grant, digests))

    async def WriteChunks(
        self, request_iterator: AsyncIterator[chunk_pb2.WriteChunksRequest], context: object
    ) -> chunk_pb2.WriteChunksResponse:
        frames = aiter(request_iterator)
        first = await anext(frames, None)
        if first is None:
            raise invalid_argument("grant", "the first frame shows it")
        grant = self._filler(first.grant, first.image_id)
        chunks = await self._filling.write(grant, first, frames)
        stored_bytes = sum(chunk.stored_bytes for chunk in chunks)
        self._moved.labels("filled").inc(stored_bytes)
        return chunk_pb2.WriteChunksResponse(chunks=len(chunks), stored_bytes=stored_bytes)

    async def CommitImage(
        self, request: chunk_pb2.CommitImageRequest, context: object
    ) -> chunk_pb2.CommitImageResponse:
        return await self._filling.commit(self._filler(request.grant, request.image_id), request)

    def _filler(self, signed: chunk_pb2.SignedGrant, image: str) -> chunk_pb2.Grant:
        """Raises GRANT_REFUSED."""
        return grants.verify(signed, self._grant_key, host=rpc.caller().host_id, writes=ImageId(image))

    async def _granted(self, signed: chunk_pb2.SignedGrant, image: ImageId) -> Digest:
        """The digest of the image's manifest. Raises GRANT_REFUSED, IMAGE_NOT_FOUND, IMAGE_NOT_ACTIVE."""
        grants.verify(signed, self._grant_key, host=rpc.caller().host_id, image=image)
        found = await self._records.by_id(image)
        if found is None:
            raise RemudaError(Reason.IMAGE_NOT_FOUND, f"image {image} does not exist")
        digest = found.manifest_digest
        if found.state not in READABLE or digest is None:
            raise no_longer(found, "ACTIVE")
        return digest

    async def RepairChunks(
        self, request_iterator: AsyncIterator[chunk_pb2.RepairChunksRequest], context: object
    ) -> chunk_pb2.RepairChunksResponse:
        frames = aiter(request_iterator)
        first = await anext(frames, None)
        if first is None:
            raise invalid_argument("grant", "the first frame brings it")
        lengths = await self._lengths.of(await self._granted(first.grant, ImageId(first.image_id)))
        repaired = await repairing.repair(self._damage, lengths, first, frames)
        return chunk_pb2.RepairChunksResponse(repaired=repaired)

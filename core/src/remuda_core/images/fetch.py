"""Fetching a base image to a host: the manifest first, then only the chunks that this host lacks.

fetcher = ImageFetcher([ChunkServiceStub(channel), ...], owner=host_id)
base = await fetcher.fetch(image_id=..., manifest_digest=..., grant=..., directory=pool / "bases")

The base is a sparse raw file, read-only, named by its manifest's digest, and never changes. However many ask
for one image at a time, it is fetched once; whoever comes second waits for the first.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

import grpc
from remuda.image.v1 import chunk_pb2

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId
from remuda_core.images.base_file import BusyPartial, PartialBase, base_path, copy_known
from remuda_core.images.chunks import DamagedChunk, Digest, Encoding, Stored, decode
from remuda_core.images.manifest import BadManifest, Manifest, parse
from remuda_core.images.replicas import Patience, Replicas, Trouble, passing
from remuda_core.images.threads import to_end

if TYPE_CHECKING:
    from remuda.image.v1.chunk_pb2_grpc import ChunkServiceAsyncStub

T = TypeVar("T")

# One call asks for so many: 256 MiB of plain bytes.
_CHUNKS_PER_CALL = 64
_STALL_SECONDS = 20.0
_TRIES = 8
# Whoever surveys the host takes a partial file's lock for a moment, to see whether it is in use.
_BUSY_TRIES = 20
_BUSY_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchProgress:
    """Bytes of distinct chunks, plain; zeros are not counted."""

    total_bytes: int
    done_bytes: int
    received_bytes: int
    """As they travelled: compressed, and without those that the host had."""


OnProgress = Callable[[FetchProgress], None]
OnManifest = Callable[[Manifest], Awaitable[None]]


async def _no_matter(_: Manifest) -> None:
    pass


class ImageFetcher:
    """One per host (process), so that a base is fetched once however many ask."""

    def __init__(
        self,
        stores: Sequence["ChunkServiceAsyncStub"],
        *,
        owner: str,
        tries: int = _TRIES,
        stall_seconds: float = _STALL_SECONDS,
    ) -> None:
        """`stores` are replicas: any of them will do. `owner` is the host's UUID.

        `tries`: failed ones in a row, without one new chunk, before it is given up. `stall_seconds`: a store
        that sends nothing for so long is left for the next one.
        """
        self.replicas = Replicas(stores)
        self.owner = owner
        self.tries = tries
        self.stall_seconds = stall_seconds
        self._locks: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    async def fetch(
        self,
        *,
        image_id: ImageId,
        manifest_digest: Digest,
        grant: chunk_pb2.SignedGrant,
        directory: Path,
        known: Sequence[Path] = (),
        on_progress: OnProgress = lambda _: None,
        on_manifest: OnManifest = _no_matter,
    ) -> Path:
        """The base in `directory`, fetched unless it is there. `known`: more directories with bases.
        `on_manifest` is awaited before anything is written: it may make room, or raise.

        Cancelling it keeps what has arrived. Raises RemudaError: STORE_UNAVAILABLE, DIGEST_MISMATCH (no
        replica has sound bytes), DISK_FULL, GRANT_REFUSED, IMAGE_NOT_FOUND, IMAGE_NOT_ACTIVE.
        """
        base = base_path(directory, manifest_digest)
        # Bound to a name: the dictionary forgets a lock as soon as nobody waits for it.
        lock = self._locks.setdefault(base, asyncio.Lock())
        async with lock:
            if base.exists():
                return base
            directory.mkdir(parents=True, exist_ok=True)
            try:
                return await _Fetch(self, image_id, grant, on_progress, on_manifest).run(
                    directory, manifest_digest, (directory, *known)
                )
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise RemudaError(
                        Reason.DISK_FULL, f"no room for image {image_id} in {directory}"
                    ) from error
                raise
            except BusyPartial as error:
                raise RemudaError(Reason.STORE_UNAVAILABLE, f"another process fetches {error}") from error


class _Fetch:
    """One image being fetched."""

    def __init__(
        self,
        fetcher: ImageFetcher,
        image_id: ImageId,
        grant: chunk_pb2.SignedGrant,
        on_progress: OnProgress,
        on_manifest: OnManifest,
    ) -> None:
        self._fetcher = fetcher
        self._image_id = image_id
        self._grant = grant
        self._on_progress = on_progress
        self._on_manifest = on_manifest
        self._progress = FetchProgress(total_bytes=0, done_bytes=0, received_bytes=0)
        self._patience = Patience(
            fetcher.replicas, f"image {image_id} cannot be fetched", tries=fetcher.tries
        )

    async def run(self, directory: Path, manifest_digest: Digest, known: Sequence[Path]) -> Path:
        manifest = await self._manifest(manifest_digest)
        lengths = manifest.lengths()
        await self._on_manifest(manifest)
        async with self._opened(directory, manifest, manifest_digest) as partial:
            present = await to_end(partial.present)
            self._advance(total=sum(lengths.values()), done=sum(lengths[digest] for digest in present))
            lacking = set(lengths) - present
            async for digest in _in_thread(copy_known(partial, set(lacking), known)):
                lacking.discard(digest)
                self._advance(done=lengths[digest])
            # In the order of the disk, which is the order in which the store wrote them.
            wanted = [digest for digest in lengths if digest in lacking]
            while wanted:
                wanted = await self._receive_some(wanted, lengths, partial)
            return await to_end(partial.finish)

    @asynccontextmanager
    async def _opened(
        self, directory: Path, manifest: Manifest, digest: Digest
    ) -> AsyncIterator[PartialBase]:
        """Raises BusyPartial when it stays in use."""
        for tries_left in reversed(range(_BUSY_TRIES)):
            with ExitStack() as stack:
                opened = PartialBase.opened(directory, manifest, digest, owner=self._fetcher.owner)
                try:
                    partial = stack.enter_context(opened)
                except BusyPartial:
                    if not tries_left:
                        raise
                else:
                    yield partial
                    return
            await asyncio.sleep(_BUSY_PAUSE_SECONDS)

    async def _manifest(self, digest: Digest) -> Manifest:
        request = chunk_pb2.GetManifestRequest(grant=self._grant, image_id=self._image_id)
        while True:
            try:
                answer = await self._fetcher.replicas.current().GetManifest(
                    request, timeout=self._fetcher.stall_seconds
                )
                return parse(answer.manifest, digest)
            except BadManifest as error:
                await self._patience.failed(Trouble(Reason.DIGEST_MISMATCH, str(error)))
            except grpc.aio.AioRpcError as error:
                await self._patience.failed(passing(error))

    async def _receive_some(
        self, wanted: list[Digest], lengths: dict[Digest, int], partial: PartialBase
    ) -> list[Digest]:
        """One call; returns what is still wanted."""
        received = 0
        try:
            batch = wanted[:_CHUNKS_PER_CALL]
            async for digest, stored in self._chunks(batch, lengths):
                data = await asyncio.to_thread(decode, stored, digest, lengths[digest])
                await to_end(partial.write, digest, data)
                received += 1
                self._patience.succeeded()
                self._advance(done=len(data), received=len(stored.data))
        except DamagedChunk as error:
            await self._patience.failed(Trouble(Reason.DIGEST_MISMATCH, str(error)))
        except TimeoutError:
            await self._patience.failed(Trouble(Reason.STORE_UNAVAILABLE, "nothing came for too long"))
        except grpc.aio.AioRpcError as error:
            await self._patience.failed(passing(error))
        return wanted[received:]

    async def _chunks(
        self, batch: Sequence[Digest], lengths: dict[Digest, int]
    ) -> AsyncIterator[tuple[Digest, Stored]]:
        """What the store sends, put together from its frames and in the order asked for; not yet verified."""
        call = self._fetcher.replicas.current().ReadChunks(
            chunk_pb2.ReadChunksRequest(grant=self._grant, image_id=self._image_id, digests=batch)
        )
        try:
            for digest in batch:
                pieces: list[bytes] = []
                frame = await self._frame(call, digest)
                while True:
                    pieces.append(frame.data)
                    # Packed only where that saves something, so never longer than the plain bytes.
                    if sum(map(len, pieces)) > lengths[digest]:
                        raise DamagedChunk(f"chunk {digest.hex()} is longer than it can be")
                    if frame.last:
                        break
                    frame = await self._frame(call, digest)
                try:
                    encoding = Encoding(frame.encoding)
                except ValueError as error:
                    raise DamagedChunk(f"chunk {digest.hex()} has an unknown encoding") from error
                yield digest, Stored(encoding=encoding, data=b"".join(pieces))
        finally:
            call.cancel()

    async def _frame(
        self,
        call: "grpc.aio.UnaryStreamCall[chunk_pb2.ReadChunksRequest, chunk_pb2.ReadChunksResponse]",
        digest: Digest,
    ) -> chunk_pb2.ReadChunksResponse:
        async with asyncio.timeout(self._fetcher.stall_seconds):
            frame = await call.read()
        if not isinstance(frame, chunk_pb2.ReadChunksResponse):
            raise DamagedChunk(f"the store ended before chunk {digest.hex()}")
        if frame.digest != digest:
            raise DamagedChunk(f"the store sent chunk {frame.digest.hex()} instead of {digest.hex()}")
        return frame

    def _advance(self, *, total: int = 0, done: int = 0, received: int = 0) -> None:
        now = self._progress
        self._progress = replace(
            now,
            total_bytes=now.total_bytes + total,
            done_bytes=now.done_bytes + done,
            received_bytes=now.received_bytes + received,
        )
        self._on_progress(self._progress)


async def _in_thread(items: Iterator[T]) -> AsyncIterator[T]:
    while (item := await to_end(next, items, None)) is not None:
        yield item

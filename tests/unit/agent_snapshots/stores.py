"""An image store in memory, as one uploader sees it, and a disk in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from remuda.image.v1.chunk_pb2 import CommitImageResponse
from remuda.image.v1.source_pb2 import ImageSource, TransferCounts
from remuda_core.errors import Reason, RemudaError
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest, chunk_digest, digest_of
from remuda_core.images.manifest import Manifest, serialize
from remuda_core.images.upload import Written


@dataclass(frozen=True, kw_only=True)
class Committed:
    manifest: Manifest
    consistency: ImageSource.Consistency.ValueType
    counts: TransferCounts
    time: datetime


@dataclass(kw_only=True)
class MemoryStore:
    """`known`: chunks of images that may be named, whose bytes only the store has."""

    known: set[Digest] = field(default_factory=set)
    chunks: dict[Digest, bytes] = field(default_factory=dict)
    committed: list[Committed] = field(default_factory=list)
    asked: list[list[Digest]] = field(default_factory=list)
    sent_bytes: int = 0
    failures: list[RemudaError] = field(default_factory=list)
    """Of the next writes."""

    async def lacking(self, digests: Sequence[Digest]) -> set[Digest]:
        self.asked.append(list(digests))
        return self._lacking(digests)

    async def write(self, chunks: Sequence[tuple[Digest, bytes]]) -> Written:
        if self.failures:
            raise self.failures.pop(0)
        for digest, data in chunks:
            assert chunk_digest(data) == digest != HOLE
            self.chunks[digest] = data
        sent = sum(len(data) for _, data in chunks)
        self.sent_bytes += sent
        return Written(sent, sent)

    async def commit(
        self,
        manifest: Manifest,
        *,
        consistency: ImageSource.Consistency.ValueType,
        counts: TransferCounts,
        snapshot_time: datetime,
    ) -> CommitImageResponse:
        if self._lacking(manifest.digests):
            raise RemudaError(Reason.IMAGE_INCOMPLETE, "chunks lack")
        frozen = TransferCounts()
        frozen.CopyFrom(counts)
        done = Committed(manifest=manifest, consistency=consistency, counts=frozen, time=snapshot_time)
        self.committed.append(done)
        return CommitImageResponse(
            manifest_digest=digest_of(serialize(manifest)).hex(), stored_bytes=self.sent_bytes
        )

    def content(self, *more: bytes) -> bytes:
        """Of the image that was committed last; `more`: disks whose chunks are known."""
        manifest = self.committed[-1].manifest
        chunks = self.chunks | {chunk_digest(data): data for disk in more for data in pieces(disk)}
        return b"".join(
            bytes(manifest.length(i)) if digest == HOLE else chunks[digest]
            for i, digest in enumerate(manifest.digests)
        )

    def _lacking(self, digests: Iterable[Digest]) -> set[Digest]:
        return {d for d in digests if d != HOLE and d not in self.known and d not in self.chunks}


@dataclass(kw_only=True)
class MemoryDisk:
    """Remembers what was read, in bytes from the start."""

    content: bytes
    reads: list[int] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    async def read(self, offset: int, length: int) -> bytes:
        self.reads.append(offset)
        return self.content[offset : offset + length]


def pieces(content: bytes) -> list[bytes]:
    return [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]


def manifest_of(content: bytes) -> Manifest:
    return Manifest(
        virtual_bytes=len(content), digests=tuple(chunk_digest(piece) for piece in pieces(content))
    )

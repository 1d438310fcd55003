"""Which chunks of a disk have to be read, and what is known of all the others. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest
from remuda_core.images.manifest import Manifest, chunk_count, chunk_length


class Span(NamedTuple):
    """Bytes of a disk."""

    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a snapshot of a disk of `virtual_bytes` has to read."""

    virtual_bytes: int
    reads: tuple[int, ...]
    """Indices of chunks, rising."""
    settled: tuple[Digest, ...]
    """Of every chunk; at the places in `reads` they mean nothing yet."""

    @property
    def read_bytes(self) -> int:
        return sum(chunk_length(self.virtual_bytes, index) for index in self.reads)


def plan(virtual_bytes: int, *, earlier: Manifest | None, touched: Iterable[Span]) -> Plan:
    """`earlier`: the content before anything in `touched` was written: of the base image, which may be of
    another size than the disk, or of a snapshot. None: unknown, so that everything has to be read.
    """
    count = chunk_count(virtual_bytes)
    if earlier is None:
        return Plan(virtual_bytes=virtual_bytes, reads=tuple(range(count)), settled=(HOLE,) * count)
    # What lies beyond the base reads as zeros.
    settled = (*earlier.digests, *(HOLE,) * (count - len(earlier.digests)))[:count]
    reads = {index for span in touched for index in _chunks(span, virtual_bytes)}
    # The base's last chunk may be a short one: where the disk goes on after it, the chunk has another length
    # and so another name, though nobody wrote there. All zero it has none, whatever its length.
    last = min(count, len(earlier.digests)) - 1
    if settled[last] != HOLE and chunk_length(virtual_bytes, last) != earlier.length(last):
        reads.add(last)
    return Plan(virtual_bytes=virtual_bytes, reads=tuple(sorted(reads)), settled=settled)


def _chunks(span: Span, virtual_bytes: int) -> range:
    end = min(span.start + span.length, virtual_bytes)
    if end <= span.start:
        return range(0)
    return range(span.start // CHUNK_BYTES, chunk_count(end))

"""A disk as a qcow2 file, written from its manifest alone and in one pass: the same image, the same bytes.

All tables stand before the data, whose clusters follow in the order of the disk, so that any replica can send
the file from any byte on. A chunk of zeros has no clusters. Layout: QEMU's docs/interop/qcow2.txt, version 3.

    header | refcount table | refcount blocks | L1 table | L2 tables | data
"""

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from remuda_core.images.chunks import CHUNK_BYTES, HOLE
from remuda_core.images.manifest import Manifest

from remuda_image_store.pieces import Piece

_CLUSTER_BITS = 16
CLUSTER_BYTES = 1 << _CLUSTER_BITS
_ENTRIES = CLUSTER_BYTES // 8
"""Of 64 bits, in a cluster of a table."""
_REFCOUNT_ORDER = 4
_REFCOUNTS = CLUSTER_BYTES // 2
"""Of 16 bits, in a cluster."""
_CLUSTERS_PER_CHUNK = CHUNK_BYTES // CLUSTER_BYTES
_CHUNKS_PER_TABLE = _ENTRIES // _CLUSTERS_PER_CHUNK
_COPIED = 1 << 63
"""The cluster has one reference: it may be written in place."""
_HEADER = ">4sIQIIQIIQQIIQQQQII"
_HEADER_BYTES = struct.calcsize(_HEADER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything stands. Made by `lay_out`; offsets are counted in clusters."""

    manifest: Manifest
    chunks: tuple[int, ...]
    """Indices of those that are not zero, in order: their clusters follow each other."""
    tables: tuple[int, ...]
    """L2 tables that are there, by their place in the L1 table."""
    refcount_table_clusters: int
    refcount_blocks: int
    l1_entries: int
    data_clusters: int

    @property
    def l1_cluster(self) -> int:
        return 1 + self.refcount_table_clusters + self.refcount_blocks

    @property
    def l2_cluster(self) -> int:
        return self.l1_cluster + -(-self.l1_entries // _ENTRIES)

    @property
    def data_cluster(self) -> int:
        return self.l2_cluster + len(self.tables)

    @property
    def clusters(self) -> int:
        return self.data_cluster + self.data_clusters

    @property
    def file_bytes(self) -> int:
        return self.clusters * CLUSTER_BYTES

    def pieces(self, start: int) -> Iterator[Piece]:
        """The file from byte `start` on."""
        if start < self.data_cluster * CLUSTER_BYTES:
            for cluster in range(start // CLUSTER_BYTES, self.data_cluster):
                offset = cluster * CLUSTER_BYTES
                yield Piece(offset, CLUSTER_BYTES, data=self._metadata(cluster)).after(start)
        first = max(0, start - self.data_cluster * CLUSTER_BYTES) // CHUNK_BYTES
        for place in range(first, len(self.chunks)):
            for piece in self._chunk(place):
                if piece.offset + piece.length > start:
                    yield piece.after(start)

    def _chunk(self, place: int) -> Iterator[Piece]:
        index = self.chunks[place]
        offset, length = self._offset(place), self.manifest.length(index)
        yield Piece(offset, length, self.manifest.digests[index], length)
        # Only the last chunk of a disk can end inside a cluster.
        if length % CLUSTER_BYTES:
            yield Piece(offset + length, CLUSTER_BYTES - length % CLUSTER_BYTES)

    def _offset(self, place: int) -> int:
        return self.data_cluster * CLUSTER_BYTES + place * CHUNK_BYTES

    def _metadata(self, cluster: int) -> bytes:
        if cluster == 0:
            return self._header()
        if cluster < 1 + self.refcount_table_clusters:
            blocks = range(1 + self.refcount_table_clusters, self.l1_cluster)
            first = (cluster - 1) * _ENTRIES
            return _table(block * CLUSTER_BYTES for block in blocks[first : first + _ENTRIES])
        if cluster < self.l1_cluster:
            first = (cluster - 1 - self.refcount_table_clusters) * _REFCOUNTS
            counted = min(_REFCOUNTS, self.clusters - first)
            return _padded(b"\0\1" * counted)
        if cluster < self.l2_cluster:
            return self._l1((cluster - self.l1_cluster) * _ENTRIES)
        return self._l2(self.tables[cluster - self.l2_cluster])

    def _header(self) -> bytes:
        header = struct.pack(
            _HEADER,
            b"QFI\xfb",
            3,
            0,  # no backing file
            0,
            _CLUSTER_BITS,
            self.manifest.virtual_bytes,
            0,  # not encrypted
            self.l1_entries,
            self.l1_cluster * CLUSTER_BYTES,
            CLUSTER_BYTES,  # the refcount table
            self.refcount_table_clusters,
            0,  # no snapshots
            0,
            0,  # no features of any kind
            0,
            0,
            _REFCOUNT_ORDER,
            _HEADER_BYTES,
        )
        return _padded(header)

    def _l1(self, first: int) -> bytes:
        entries = array("Q", bytes(CLUSTER_BYTES))
        begin, end = bisect_left(self.tables, first), bisect_left(self.tables, first + _ENTRIES)
        for place in range(begin, end):
            offset = (self.l2_cluster + place) * CLUSTER_BYTES
            entries[self.tables[place] - first] = _COPIED | offset
        return _big_endian(entries)

    def _l2(self, table: int) -> bytes:
        entries = array("Q", bytes(CLUSTER_BYTES))
        first = table * _CHUNKS_PER_TABLE
        begin, end = bisect_left(self.chunks, first), bisect_left(self.chunks, first + _CHUNKS_PER_TABLE)
        for place in range(begin, end):
            index = self.chunks[place]
            count = _clusters(self.manifest.length(index))
            offset = _COPIED | self._offset(place)
            at = (index - first) * _CLUSTERS_PER_CHUNK
            entries[at : at + count] = array(
                "Q", range(offset, offset + count * CLUSTER_BYTES, CLUSTER_BYTES)
            )
        return _big_endian(entries)


def lay_out(manifest: Manifest) -> Layout:
    chunks = tuple(index for index, digest in enumerate(manifest.digests) if digest != HOLE)
    tables = tuple(sorted({index // _CHUNKS_PER_TABLE for index in chunks}))
    data_clusters = sum(_clusters(manifest.length(index)) for index in chunks)
    blocks = table_clusters = 1
    while True:
        layout = Layout(
            manifest=manifest,
            chunks=chunks,
            tables=tables,
            refcount_table_clusters=table_clusters,
            refcount_blocks=blocks,
            l1_entries=-(-len(manifest.digests) // _CHUNKS_PER_TABLE),
            data_clusters=data_clusters,
        )
        # The blocks count themselves: a few rounds, each of which can only add.
        needed = -(-layout.clusters // _REFCOUNTS)
        if needed <= blocks and -(-blocks // _ENTRIES) <= table_clusters:
            return layout
        blocks = max(blocks, needed)
        table_clusters = -(-blocks // _ENTRIES)


def _clusters(length: int) -> int:
    return -(-length // CLUSTER_BYTES)


def _table(values: Iterator[int]) -> bytes:
    return _padded(_big_endian(array("Q", values)))


def _big_endian(entries: "array[int]") -> bytes:
    if sys.byteorder == "little":
        entries.byteswap()
    return entries.tobytes()


def _padded(data: bytes) -> bytes:
    return data + bytes(CLUSTER_BYTES - len(data))

"""The qcow2 file of a manifest, read by the format's rules: every chunk stands where the tables say."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, digest_of
from remuda_core.images.manifest import Manifest, chunk_count
from remuda_image_store.pieces import Piece
from remuda_image_store.qcow2 import CLUSTER_BYTES, Layout, lay_out

GIB = 1 << 30
COPIED = 1 << 63
A = digest_of(b"a")


def manifest(virtual_bytes: int, filled: Sequence[int]) -> Manifest:
    digests = [HOLE] * chunk_count(virtual_bytes)
    for index in filled:
        digests[index % len(digests)] = digest_of(b"%d" % (index % len(digests)))
    return Manifest(virtual_bytes=virtual_bytes, digests=tuple(digests))


disks = st.builds(
    manifest,
    st.integers(min_value=1, max_value=8 * GIB // 512).map(lambda sectors: sectors * 512),
    st.lists(st.integers(min_value=0, max_value=1 << 20), max_size=40),
)


class Reader:
    """As much of a qcow2 driver as mapping needs."""

    def __init__(self, layout: Layout) -> None:
        self.pieces = {piece.offset: piece for piece in layout.pieces(0)}
        header = self.cluster(0)
        self.size = struct.unpack_from(">Q", header, 24)[0]
        self.l1_entries, self.l1 = struct.unpack_from(">IQ", header, 36)
        self.refcount_table, self.refcount_clusters = struct.unpack_from(">QI", header, 48)

    def cluster(self, offset: int) -> bytes:
        return self.pieces[offset].data

    def table(self, offset: int) -> tuple[int, ...]:
        return struct.unpack(f">{CLUSTER_BYTES // 8}Q", self.cluster(offset))

    def l2(self) -> dict[int, int]:
        """Guest offset -> offset of its cluster, of those that are there."""
        found = {}
        for at in range(self.l1_entries):
            step, place = divmod(at, CLUSTER_BYTES // 8)
            table = self.table(self.l1 + step * CLUSTER_BYTES)[place]
            if table:
                assert table & COPIED
                for entry, cluster in enumerate(self.table(table & ~COPIED)):
                    if cluster:
                        assert cluster & COPIED
                        guest = (at * CLUSTER_BYTES // 8 + entry) * CLUSTER_BYTES
                        found[guest] = cluster & ~COPIED
        return found

    def counted(self) -> int:
        """Clusters with one reference, which come first; all others have none."""
        counts = b""
        for step in range(self.refcount_clusters):
            blocks = [block for block in self.table(self.refcount_table + step * CLUSTER_BYTES) if block]
            counts += b"".join(map(self.cluster, blocks))
        used = counts.count(b"\0\1")
        assert counts == b"\0\1" * used + bytes(len(counts) - 2 * used)
        return used


def adjoin(pieces: Sequence[Piece], start: int, end: int) -> bool:
    for piece in pieces:
        if piece.offset != start or piece.length <= 0:
            return False
        start += piece.length
    return start == end


@given(disks)
@settings(max_examples=40, deadline=None)
def test_every_chunk_stands_where_the_tables_say_and_every_cluster_is_counted_once(disk: Manifest) -> None:
    layout = lay_out(disk)
    reader = Reader(layout)
    assert reader.size == disk.virtual_bytes
    assert adjoin(list(layout.pieces(0)), 0, layout.file_bytes)
    mapped = reader.l2()
    assert len(set(mapped.values())) == len(mapped) == layout.data_clusters
    for index, digest in enumerate(disk.digests):
        guest, length = index * CHUNK_BYTES, disk.length(index)
        if digest == HOLE:
            assert guest not in mapped
            continue
        piece = reader.pieces[mapped[guest]]
        assert (piece.digest, piece.length, piece.skip) == (digest, length, 0)
        for at in range(0, length, CLUSTER_BYTES):
            assert mapped[guest + at] == piece.offset + at
    assert reader.counted() * CLUSTER_BYTES == layout.file_bytes


@given(disks, st.floats(min_value=0, max_value=1))
@settings(max_examples=60, deadline=None)
def test_from_any_byte_on_it_is_the_end_of_the_whole_file(disk: Manifest, where: float) -> None:
    layout = lay_out(disk)
    start = int(layout.file_bytes * where)
    rest = list(layout.pieces(start))
    assert adjoin(rest, start, layout.file_bytes)
    whole = [piece.after(start) for piece in layout.pieces(0) if piece.offset + piece.length > start]
    assert rest == whole


@pytest.mark.parametrize("terabytes", [2.5, 15])
def test_a_huge_disk_has_as_many_refcount_blocks_as_its_own_file_needs(terabytes: float) -> None:
    chunks = int(terabytes * (1 << 40)) // CHUNK_BYTES
    layout = lay_out(Manifest(virtual_bytes=chunks * CHUNK_BYTES, digests=(A,) * chunks))
    assert layout.clusters <= layout.refcount_blocks * CLUSTER_BYTES // 2
    assert layout.clusters > (layout.refcount_blocks - 1) * CLUSTER_BYTES // 2
    assert layout.refcount_table_clusters == 1

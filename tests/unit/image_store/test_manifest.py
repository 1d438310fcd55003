"""Manifests: bytes that follow from the content, and what a disk consists of."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from remuda.image.v1 import chunk_pb2
from remuda_core.images.chunks import CHUNK_BYTES, DIGEST_BYTES, HOLE, Digest, digest_of
from remuda_core.images.manifest import BadManifest, Manifest, chunk_count, parse, serialize

NAMES = st.sampled_from([HOLE, *(Digest(bytes([n]) * DIGEST_BYTES) for n in range(1, 6))])


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    digests = tuple(draw(st.lists(NAMES, min_size=1, max_size=12)))
    short = draw(st.integers(0, CHUNK_BYTES - 1))
    return Manifest(virtual_bytes=len(digests) * CHUNK_BYTES - short, digests=digests)


@given(manifests())
def test_a_manifest_survives_serialization_and_its_bytes_are_always_the_same(manifest: Manifest) -> None:
    blob = serialize(manifest)
    assert parse(blob, digest_of(blob)) == manifest
    assert serialize(parse(blob, digest_of(blob))) == blob


@given(manifests(), st.integers(0))
@example(Manifest(virtual_bytes=CHUNK_BYTES - 1, digests=(Digest(b"1" * DIGEST_BYTES),)), CHUNK_BYTES - 1)
def test_extents_cover_the_rest_of_the_disk_without_gap_overlap_or_two_holes_in_a_row(
    manifest: Manifest, somewhere: int
) -> None:
    start = somewhere % (manifest.virtual_bytes + 1)
    position, last_was_hole = start, False
    for extent in manifest.extents(start):
        assert extent.offset == position
        assert extent.length > 0
        first, last = extent.offset // CHUNK_BYTES, (extent.offset + extent.length - 1) // CHUNK_BYTES
        assert {manifest.digests[index] for index in range(first, last + 1)} == {extent.digest}
        if extent.digest == HOLE:
            assert not last_was_hole
        else:
            assert first == last
        position, last_was_hole = extent.offset + extent.length, extent.digest == HOLE
    assert position == manifest.virtual_bytes


@given(st.integers(1, 1 << 45))
def test_the_lengths_of_all_chunks_make_up_the_disk(virtual_bytes: int) -> None:
    count = chunk_count(virtual_bytes)
    assert (count - 1) * CHUNK_BYTES < virtual_bytes <= count * CHUNK_BYTES


def test_lengths_name_every_distinct_chunk_once_in_the_order_of_the_disk() -> None:
    a, b = Digest(b"a" * DIGEST_BYTES), Digest(b"b" * DIGEST_BYTES)
    manifest = Manifest(virtual_bytes=3 * CHUNK_BYTES + 512, digests=(b, HOLE, b, a))
    assert manifest.lengths() == {b: CHUNK_BYTES, a: 512}
    assert list(manifest.lengths()) == [b, a]


@pytest.mark.parametrize(
    ("virtual_bytes", "digests"),
    [(0, ()), (-1, ()), (512, ()), (512, (HOLE, HOLE)), (512, (Digest(b"short"),))],
)
def test_parts_that_do_not_fit_each_other_are_refused(
    virtual_bytes: int, digests: tuple[Digest, ...]
) -> None:
    with pytest.raises(BadManifest):
        Manifest(virtual_bytes=virtual_bytes, digests=digests)


def test_bytes_that_are_not_the_manifest_asked_for_are_refused() -> None:
    blob = serialize(Manifest(virtual_bytes=512, digests=(HOLE,)))
    with pytest.raises(BadManifest, match="are not manifest"):
        parse(blob, digest_of(blob + b"x"))


@pytest.mark.parametrize(
    "blob",
    [
        b"\xff\xff\xff",
        chunk_pb2.Manifest(virtual_bytes=512, chunk_bytes=512, digests=[b""]).SerializeToString(),
    ],
)
def test_a_blob_that_is_no_manifest_of_ours_is_refused(blob: bytes) -> None:
    with pytest.raises(BadManifest):
        parse(blob, digest_of(blob))

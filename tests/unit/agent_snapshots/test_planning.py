"""What a snapshot reads, against the bytes themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from remuda_agent.snapshots.planning import Span, plan
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest, digest_of
from remuda_core.images.manifest import Manifest, chunk_count, chunk_length

MIB = 1 << 20
A, B = digest_of(b"a"), digest_of(b"b")


def image(virtual_bytes: int, *digests: Digest) -> Manifest:
    return Manifest(virtual_bytes=virtual_bytes, digests=digests)


def test_what_was_not_touched_is_as_the_base_says_and_beyond_it_there_are_zeros() -> None:
    planned = plan(5 * CHUNK_BYTES, earlier=image(2 * CHUNK_BYTES, A, B), touched=[])
    assert planned.reads == ()
    assert planned.settled == (A, B, HOLE, HOLE, HOLE)
    assert planned.read_bytes == 0


def test_a_touched_byte_costs_its_chunk_and_an_extent_over_a_boundary_costs_both() -> None:
    base = image(4 * CHUNK_BYTES, A, A, A, A)
    planned = plan(
        4 * CHUNK_BYTES,
        earlier=base,
        touched=[Span(0, 1), Span(2 * CHUNK_BYTES - 1, 2), Span(2 * CHUNK_BYTES, 0)],
    )
    assert planned.reads == (0, 1, 2)
    assert planned.read_bytes == 3 * CHUNK_BYTES


def test_the_short_last_chunk_of_the_base_is_read_where_the_disk_goes_on_after_it() -> None:
    base = image(CHUNK_BYTES + 5 * MIB // 4, A, B)
    assert plan(10 * CHUNK_BYTES, earlier=base, touched=[]).reads == (1,)
    assert plan(base.virtual_bytes, earlier=base, touched=[]).reads == ()
    # A little longer, and still the last one.
    assert plan(base.virtual_bytes + 512, earlier=base, touched=[]).reads == (1,)


def test_a_last_chunk_of_zeros_stays_one_however_long_it_becomes() -> None:
    base = image(CHUNK_BYTES + MIB, A, HOLE)
    assert plan(10 * CHUNK_BYTES, earlier=base, touched=[]).reads == ()


def test_a_disk_that_is_smaller_than_its_base_reads_where_it_is_cut() -> None:
    planned = plan(CHUNK_BYTES + MIB, earlier=image(3 * CHUNK_BYTES, A, B, A), touched=[])
    assert planned.reads == (1,)
    assert len(planned.settled) == 2


def test_without_an_earlier_content_everything_is_read() -> None:
    planned = plan(CHUNK_BYTES + 1, earlier=None, touched=[])
    assert planned.reads == (0, 1)
    assert planned.read_bytes == CHUNK_BYTES + 1


SIZES = st.integers(min_value=1, max_value=5 * CHUNK_BYTES)


@given(base_bytes=SIZES, disk_bytes=SIZES, data=st.data())
def test_every_chunk_is_either_read_or_the_same_bytes_as_before(
    base_bytes: int, disk_bytes: int, data: st.DataObject
) -> None:
    digests = data.draw(
        st.lists(
            st.sampled_from([A, B, HOLE]),
            min_size=chunk_count(base_bytes),
            max_size=chunk_count(base_bytes),
        )
    )
    base = image(base_bytes, *digests)
    starts = st.integers(min_value=0, max_value=disk_bytes - 1)
    touched = [Span(start, 1) for start in data.draw(st.lists(starts, max_size=4))]
    planned = plan(disk_bytes, earlier=base, touched=touched)
    assert len(planned.settled) == chunk_count(disk_bytes)
    assert {span.start // CHUNK_BYTES for span in touched} <= set(planned.reads)
    for index in set(range(chunk_count(disk_bytes))) - set(planned.reads):
        length = chunk_length(disk_bytes, index)
        if index >= len(digests) or digests[index] == HOLE:
            assert planned.settled[index] == HOLE
        else:
            assert planned.settled[index] == digests[index]
            assert base.length(index) == length

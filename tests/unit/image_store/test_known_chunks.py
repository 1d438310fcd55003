"""What a host may leave out, what it is charged for, and what is remembered of it."""

from hypothesis import given
from hypothesis import strategies as st
from remuda_core.images.chunks import CHUNK_BYTES, DIGEST_BYTES, HOLE, Digest
from remuda_image_store import ledger
from remuda_image_store.known_chunks import lacking_from
from remuda_image_store.ledger import Brought
from remuda_image_store.lru import Lately

DIGESTS = [Digest(bytes([n]) * DIGEST_BYTES) for n in range(1, 7)]
LENGTHS = st.sampled_from([512, CHUNK_BYTES])
CHUNKS = st.dictionaries(st.sampled_from(DIGESTS), LENGTHS)


@given(wanted=CHUNKS, readable=st.lists(CHUNKS, max_size=2), brought=CHUNKS)
def test_a_chunk_is_known_with_its_length_only_and_charged_unless_it_can_be_read(
    wanted: dict[Digest, int], readable: list[dict[Digest, int]], brought: dict[Digest, int]
) -> None:
    sent = {digest: Brought(digest, digest[0], length) for digest, length in brought.items()}
    lacking, stored_bytes = lacking_from(wanted, readable, sent)
    read = set().union(*(lengths.items() for lengths in readable))
    charged = wanted.items() & brought.items() - read
    assert lacking == {digest for digest, _ in wanted.items() - brought.items() - read}
    assert stored_bytes == sum(digest[0] for digest, _ in charged)


@given(st.lists(st.tuples(st.sampled_from([HOLE, *DIGESTS]), st.integers(0, 2**32 - 1), LENGTHS)))
def test_a_ledger_keeps_order_holes_and_sizes(entries: list[tuple[Digest, int, int]]) -> None:
    chunks = [Brought(*entry) for entry in entries]
    blob = ledger.serialize_brought(chunks)
    assert ledger.parse_brought(blob) == chunks
    assert ledger.parse(blob) == [chunk.digest for chunk in chunks]
    assert ledger.parse(ledger.serialize(digest for digest, _, _ in entries)) == ledger.parse(blob)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6))), st.integers(1, 12))
def test_what_was_read_lately_stays_within_its_bound(puts: list[tuple[int, int]], most: int) -> None:
    lately: Lately[int, list[int]] = Lately(most)
    for key, weight in puts:
        value = [key] * weight
        lately.put(key, value)
        assert lately.get(key) is value
        kept = {each: found for each in range(6) if (found := lately.get(each)) is not None}
        assert sum(map(len, kept.values())) <= max(most, weight)
        # Asking for all of them has made an order of its own; the one put last is asked for again.
        lately.get(key)


def test_the_one_that_was_asked_for_longest_ago_goes_first() -> None:
    lately: Lately[str, str] = Lately(2)
    lately.put("a", "1")
    lately.put("b", "1")
    assert lately.get("a") == "1"
    lately.put("c", "1")
    assert (lately.get("a"), lately.get("b"), lately.get("c")) == ("1", None, "1")
    lately.drop("a")
    assert lately.get("a") is None

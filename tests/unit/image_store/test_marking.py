"""What a pass over a shard decides."""

from hypothesis import given
from hypothesis import strategies as st
from remuda_core.images.chunks import Digest
from remuda_image_store.blob_names import Names
from remuda_image_store.content import chunk_key, manifest_key
from remuda_image_store.marking import Listed, Mark, Needed, judge, parse_name, unneeded

GRACE = 100.0
X, Y = Digest(b"\0" * 32), Digest(b"\0" * 31 + b"\1")
NOBODY = Names(revision=1, again={}, last_dooms={})


def listed(*names: str, version: str = "1") -> list[Listed]:
    return [Listed(name=name, version=version) for name in names]


def test_what_is_free_is_marked_first_and_due_a_grace_later() -> None:
    blobs = listed("a", "b")
    first = judge(blobs, {"a"}, [], now=0, grace=GRACE)
    assert (first.due, [mark.name for mark in first.marks]) == ((), ["a"])
    early = judge(blobs, {"a"}, first.marks, now=GRACE - 1, grace=GRACE)
    assert (early.due, early.marks) == ((), first.marks)
    assert judge(blobs, {"a"}, early.marks, now=GRACE, grace=GRACE).due == ("a",)


def test_a_mark_goes_when_the_blob_is_needed_is_gone_or_was_put_anew() -> None:
    marks = [Mark(name="a", version="1", since=0)]
    assert judge(listed("a"), set(), marks, now=GRACE, grace=GRACE).marks == ()
    assert judge([], {"a"}, marks, now=GRACE, grace=GRACE).marks == ()
    anew = judge(listed("a", version="2"), {"a"}, marks, now=GRACE, grace=GRACE)
    assert (anew.due, anew.marks) == ((), (Mark(name="a", version="2", since=GRACE),))


def test_a_mark_of_the_future_counts_from_now() -> None:
    marks = [Mark(name="a", version="1", since=1e9)]
    (mark,) = judge(listed("a"), {"a"}, marks, now=5, grace=GRACE).marks
    assert mark.since == 5


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1000)), max_size=30))
def test_nothing_is_due_that_was_needed_within_the_last_grace(passes: list[tuple[bool, float]]) -> None:
    now, needed_at, marks = 0.0, 0.0, tuple[Mark, ...]()
    for needed, after in passes:
        now += after
        verdict = judge(listed("a"), set() if needed else {"a"}, marks, now=now, grace=GRACE)
        needed_at = now if needed else needed_at
        assert not verdict.due or now - needed_at >= GRACE
        marks = verdict.marks


def test_content_is_needed_by_kind_and_foreign_names_never_are() -> None:
    needed = Needed(chunks={X}, manifests={Y})
    names = [chunk_key(X), chunk_key(Y), manifest_key(X), manifest_key(Y), "chunks/00/no-digest"]
    assert unneeded(names, needed, NOBODY) == {chunk_key(Y), manifest_key(X), "chunks/00/no-digest"}
    assert parse_name(f"{chunk_key(X)}.abc") == ("chunks/", X)


def test_of_two_blobs_with_the_same_content_the_one_that_may_be_relied_on_stays() -> None:
    key, needed = chunk_key(X), Needed(chunks={X}, manifests=set())
    other, stray = f"{key}.1", f"{key}.2"

    def free(*present: str, doomed: set[str] | None = None, again: str | None = other) -> set[str]:
        mapping = {} if again is None else {key: again}
        names = Names(revision=1, doomed=doomed or set(), again=mapping, last_dooms={})
        return unneeded(present, needed, names)

    assert free(key, other) == {other}
    assert free(key, other, doomed={key}) == {key}
    assert free(other, stray) == {stray}
    # Nothing better is there: what somebody else may still remove is not removed here.
    assert free(key, doomed={key}, again=None) == set()
    assert free(key, other, doomed={key, other}) == set()

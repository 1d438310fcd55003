"""The immutable sorted map under every cache."""

from bisect import bisect_right

from hypothesis import given
from hypothesis import strategies as st
from remuda_core.etcd.snapshot import Entry, Snapshot

# Few different keys, so that changes meet; with characters of 1, 2, 3 and 4 UTF-8 bytes.
KEYS = st.text(alphabet="ab/é語🐎", min_size=1, max_size=3)


def entry(key: str, revision: int) -> Entry[int]:
    return Entry(key=key, value=revision, create_revision=1, mod_revision=revision)


def built(count: int) -> Snapshot[int]:
    return Snapshot.build(7, [entry(f"k{number:06}", 1) for number in range(count)])


def content(snapshot: Snapshot[int]) -> dict[str, int]:
    return {found.key: found.value for found in snapshot.items()}


@given(st.lists(st.tuples(KEYS, st.booleans()), max_size=60))
def test_it_holds_what_a_dict_would_and_older_ones_do_not_change(steps: list[tuple[str, bool]]) -> None:
    snapshot, model = Snapshot[int].empty(), dict[str, int]()
    history = [(snapshot, dict(model))]
    for revision, (key, is_put) in enumerate(steps, start=1):
        if is_put:
            snapshot, model = snapshot.with_entry(entry(key, revision)), {**model, key: revision}
        else:
            snapshot, model = snapshot.without(key), {k: v for k, v in model.items() if k != key}
        history.append((snapshot, model))
    for old, expected in history:
        assert content(old) == expected
        assert len(old) == len(expected)
        assert list(content(old)) == sorted(expected, key=lambda key: key.encode())


@given(st.dictionaries(KEYS, st.integers(1, 3)), st.dictionaries(KEYS, st.integers(1, 3)))
def test_differences_turn_the_old_one_into_the_new_one(old: dict[str, int], new: dict[str, int]) -> None:
    before = Snapshot.build(1, [entry(key, old[key]) for key in sorted(old)])
    after = Snapshot.build(2, [entry(key, new[key]) for key in sorted(new)])
    changed = list(before.differences(after))
    for was, now in changed:
        assert was is None or now is None or (was.key == now.key and was.mod_revision != now.mod_revision)
        before = before.without(was.key) if now is None and was is not None else before
        before = before.with_entry(now) if now is not None else before
    assert content(before) == new
    assert len(changed) == len({k for k in {*old, *new} if old.get(k) != new.get(k)})


@given(st.sets(KEYS), st.text(alphabet="ab/é", max_size=2), st.one_of(st.just(""), KEYS))
def test_items_start_after_a_key_and_stay_within_a_prefix(keys: set[str], prefix: str, after: str) -> None:
    snapshot = Snapshot.build(1, [entry(key, 1) for key in sorted(keys)])
    found = [one.key for one in snapshot.items(prefix=prefix, start_after=after)]
    assert found == [key for key in sorted(keys) if key.startswith(prefix) and key > after]


def test_pages_over_many_blocks_meet_every_key_once() -> None:
    snapshot, seen, after = built(5000), list[str](), ""
    while page := [one.key for _, one in zip(range(300), snapshot.items(start_after=after), strict=False)]:
        seen += page
        after = page[-1]
    assert seen == [f"k{number:06}" for number in range(5000)]


def test_inserting_into_full_blocks_splits_them_and_keeps_the_order() -> None:
    snapshot = built(1000)
    for number in range(2000):
        snapshot = snapshot.with_entry(entry(f"k000500.{number:04}", 2))
    keys = [one.key for one in snapshot.items()]
    assert keys == sorted(keys)
    assert len(keys) == len(snapshot) == 3000
    assert snapshot.get("k000500.1999") == entry("k000500.1999", 2)


def test_an_iteration_goes_on_over_the_state_it_began_with() -> None:
    snapshot = built(600)
    items = snapshot.items()
    first = next(items)
    snapshot = snapshot.without("k000001").without("k000599")
    assert [first.key, *(one.key for one in items)] == [f"k{number:06}" for number in range(600)]
    assert len(snapshot) == 598


def test_a_change_shares_all_blocks_but_one() -> None:
    before = built(5000)
    after = before.with_entry(entry("k002500", 9))
    shared = {id(block) for block in before._blocks} & {id(block) for block in after._blocks}
    assert len(shared) == len(before._blocks) - 1
    assert list(before.differences(after)) == [(entry("k002500", 1), entry("k002500", 9))]


def test_removing_every_key_leaves_an_empty_snapshot_that_still_works() -> None:
    snapshot = built(1200)
    for number in range(1200):
        snapshot = snapshot.without(f"k{number:06}")
    assert len(snapshot) == 0
    assert snapshot.get("k000000") is None
    assert content(snapshot.with_entry(entry("a", 1))) == {"a": 1}
    assert bisect_right(snapshot._firsts, "a") == 0

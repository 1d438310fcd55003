"""What a subscriber of a cache gets, also when it is slow."""

import asyncio
from collections.abc import Callable

import pytest
from remuda_core.etcd.snapshot import Entry, Snapshot
from remuda_core.etcd.subscription import Change, ChangeKind, Subscription, change


class Source:
    """Stands for the cache: a present state, and subscriptions that are told about changes."""

    def __init__(self) -> None:
        self.present: Snapshot[str] = Snapshot.empty()
        self.revision = 0
        self.subscriptions: set[Subscription[str]] = set()

    def subscribe(self, *, initial: bool = False, queue_size: int = 4) -> Subscription[str]:
        subscription: Subscription[str] = Subscription(
            seen=Snapshot.empty() if initial else self.present,
            present=lambda: self.present,
            queue_size=queue_size,
            detach=self.subscriptions.discard,
        )
        self.subscriptions.add(subscription)
        return subscription

    def put(self, key: str, value: str) -> None:
        self.revision += 1
        new = Entry(key=key, value=value, create_revision=1, mod_revision=self.revision)
        self._change(self.present.get(key), new, lambda: self.present.with_entry(new))

    def delete(self, key: str) -> None:
        self.revision += 1
        self._change(self.present.get(key), None, lambda: self.present.without(key))

    def _change(
        self, old: Entry[str] | None, new: Entry[str] | None, after: Callable[[], Snapshot[str]]
    ) -> None:
        self.present = after().at_revision(self.revision)
        for subscription in self.subscriptions:
            subscription.offer([change(old, new, self.revision)])


async def take(subscription: Subscription[str], count: int) -> list[Change[str]]:
    async with asyncio.timeout(5):
        return [await anext(subscription) for _ in range(count)]


def words(changes: list[Change[str]]) -> list[str]:
    return [f"{one.kind.value} {one.key} {one.new.value if one.new else ''}".strip() for one in changes]


async def test_changes_come_in_order_with_the_old_and_the_new_value() -> None:
    source = Source()
    async with source.subscribe() as changes:
        source.put("a", "1")
        source.put("a", "2")
        source.delete("a")
        first, second, third = await take(changes, 3)
    assert first.kind is ChangeKind.PUT
    assert first.old is None
    assert second.old == first.new
    assert second.mod_revision == 2
    assert third.kind is ChangeKind.DELETE
    assert third.old == second.new
    assert (third.new, third.mod_revision) == (None, 3)


async def test_with_initial_everything_there_is_comes_first() -> None:
    source = Source()
    source.put("b", "1")
    source.put("a", "2")
    async with source.subscribe(initial=True) as changes:
        source.put("c", "3")
        assert words(await take(changes, 3)) == ["PUT a 2", "PUT b 1", "PUT c 3"]


async def test_a_slow_subscriber_gets_the_differences_and_misses_no_final_state() -> None:
    source = Source()
    source.put("gone", "1")
    async with source.subscribe(queue_size=3) as changes:
        source.put("a", "1")
        assert words(await take(changes, 1)) == ["PUT a 1"]
        for value in "23456":
            source.put("a", value)
        source.put("b", "1")
        source.delete("gone")
        merged = await take(changes, 3)
        assert words(merged) == ["PUT a 6", "PUT b 1", "DELETE gone"]
        # Against what this subscriber saw last, not against what the cache held in between.
        assert merged[0].old is not None
        assert merged[0].old.value == "1"
        assert changes.resyncs == 1
        source.put("b", "2")
        assert words(await take(changes, 1)) == ["PUT b 2"]


async def test_changes_during_a_resync_come_after_it() -> None:
    source = Source()
    async with source.subscribe(queue_size=2) as changes:
        for key in "abcd":
            source.put(key, "1")
        assert words(await take(changes, 1)) == ["PUT a 1"]
        source.put("a", "2")
        source.delete("d")
        assert words(await take(changes, 5)) == ["PUT b 1", "PUT c 1", "PUT d 1", "PUT a 2", "DELETE d"]


async def test_overflowing_again_during_a_resync_ends_in_the_final_state() -> None:
    source = Source()
    async with source.subscribe(queue_size=2) as changes:
        for key in "abcd":
            source.put(key, "1")
        await take(changes, 2)
        for value in "23456":
            source.put("a", value)
            source.put("d", value)
        got = await take(changes, 4)
        assert words(got) == ["PUT c 1", "PUT d 1", "PUT a 6", "PUT d 6"]
        assert changes.resyncs == 2


async def test_a_key_that_came_and_went_unseen_is_not_mentioned() -> None:
    source = Source()
    async with source.subscribe(queue_size=1) as changes:
        source.put("x", "1")
        source.delete("x")
        source.put("y", "1")
        assert words(await take(changes, 1)) == ["PUT y 1"]


async def test_closing_delivers_what_is_left_and_then_ends() -> None:
    source = Source()
    changes = source.subscribe()
    source.put("a", "1")
    changes.end(None)
    assert words([one async for one in changes]) == ["PUT a 1"]
    assert not source.subscriptions


async def test_a_failed_cache_raises_its_reason_in_a_waiting_subscriber() -> None:
    source = Source()
    async with source.subscribe() as changes:
        waiting = asyncio.create_task(take(changes, 1))
        await asyncio.sleep(0)
        changes.end(RuntimeError("a bug"))
        with pytest.raises(RuntimeError, match="a bug"):
            await waiting

"""An immutable, sorted map of keys, cheap to change by making a new one.

Lists are served for 60 s from the state that their first page saw, while the watch goes on changing the
present. Entries stand in blocks of at most a few hundred; a change copies one block and the list of blocks,
and shares all others, so that keeping old snapshots costs next to nothing. (Copying a dict of 200,000
instances for every change takes milliseconds; a hash trie has no order, which page tokens need.)
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

_BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[T]):
    """A decoded value and where it stands in etcd's history."""

    key: str
    value: T
    create_revision: int
    mod_revision: int
    """Changes with every write: the etag."""


@dataclass(frozen=True, slots=True)
class _Block(Generic[T]):
    """Never empty; the two tuples run in parallel."""

    keys: tuple[str, ...]
    entries: tuple[Entry[T], ...]


class Snapshot(Generic[T]):
    """The entries as of `revision`, sorted by key. Immutable."""

    __slots__ = ("_blocks", "_firsts", "_size", "revision")

    def __init__(
        self, revision: int, blocks: tuple[_Block[T], ...], firsts: tuple[str, ...], size: int
    ) -> None:
        """Use `empty` and `build`."""
        self.revision = revision
        self._blocks = blocks
        self._firsts = firsts
        self._size = size

    @classmethod
    def empty(cls) -> "Snapshot[T]":
        return cls(0, (), (), 0)

    @classmethod
    def build(cls, revision: int, entries: Iterable[Entry[T]]) -> "Snapshot[T]":
        """`entries` must come sorted by key, each key once."""
        source, blocks, size = iter(entries), [], 0
        # Half full, so that the first insertions do not split every block.
        while chunk := tuple(islice(source, _BLOCK // 2)):
            blocks.append(_Block(tuple(entry.key for entry in chunk), chunk))
            size += len(chunk)
        return cls(revision, tuple(blocks), tuple(block.keys[0] for block in blocks), size)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> Entry[T] | None:
        index = bisect_right(self._firsts, key) - 1
        if index < 0:
            return None
        block = self._blocks[index]
        at = bisect_left(block.keys, key)
        return block.entries[at] if at < len(block.keys) and block.keys[at] == key else None

    def items(self, *, prefix: str = "", start_after: str = "") -> Iterator[Entry[T]]:
        """Entries in key order, whose keys begin with `prefix` and come after `start_after`."""
        index = max(bisect_right(self._firsts, max(prefix, start_after)) - 1, 0)
        for block in islice(self._blocks, index, None):
            at = bisect_left(block.keys, prefix)
            if start_after:
                at = max(at, bisect_right(block.keys, start_after))
            for entry in islice(block.entries, at, None):
                if not entry.key.startswith(prefix):
                    return
                yield entry

    def at_revision(self, revision: int) -> "Snapshot[T]":
        """The same entries, known to be those of a later revision."""
        return Snapshot(revision, self._blocks, self._firsts, self._size)

    def with_entry(self, entry: Entry[T]) -> "Snapshot[T]":
        """With `entry` added, or in the place of the one with its key."""
        index = max(bisect_right(self._firsts, entry.key) - 1, 0)
        if not self._blocks:
            return self._spliced(0, 0, [_Block((entry.key,), (entry,))], 1)
        block = self._blocks[index]
        at = bisect_left(block.keys, entry.key)
        found = at < len(block.keys) and block.keys[at] == entry.key
        rest = at + 1 if found else at
        keys = (*block.keys[:at], entry.key, *block.keys[rest:])
        entries = (*block.entries[:at], entry, *block.entries[rest:])
        return self._spliced(index, index + 1, _split(keys, entries), 0 if found else 1)

    def without(self, key: str) -> "Snapshot[T]":
        """Without `key`, which need not be there."""
        index = bisect_right(self._firsts, key) - 1
        if index < 0 or self.get(key) is None:
            return self
        block = self._blocks[index]
        at = bisect_left(block.keys, key)
        keys = block.keys[:at] + block.keys[at + 1 :]
        left = [_Block(keys, block.entries[:at] + block.entries[at + 1 :])] if keys else []
        return self._spliced(index, index + 1, left, -1)

    def _spliced(self, start: int, end: int, new: list[_Block[T]], grown: int) -> "Snapshot[T]":
        return Snapshot(
            self.revision,
            (*self._blocks[:start], *new, *self._blocks[end:]),
            (*self._firsts[:start], *(block.keys[0] for block in new), *self._firsts[end:]),
            self._size + grown,
        )

    def differences(self, newer: "Snapshot[T]") -> Iterator[tuple[Entry[T] | None, Entry[T] | None]]:
        """(old, new) of every key that was added, changed or removed from this one to `newer`, in key order.

        An entry counts as changed when its mod_revision or create_revision differs.
        """
        shared = {id(block) for block in self._blocks} & {id(block) for block in newer._blocks}  # noqa: SLF001 - one class
        olds, news = self._unshared(shared), newer._unshared(shared)  # noqa: SLF001
        old, new = next(olds, None), next(news, None)
        while old is not None or new is not None:
            if new is None or (old is not None and old.key < new.key):
                yield old, None
                old = next(olds, None)
            elif old is None or new.key < old.key:
                yield None, new
                new = next(news, None)
            else:
                if (old.mod_revision, old.create_revision) != (new.mod_revision, new.create_revision):
                    yield old, new
                old, new = next(olds, None), next(news, None)

    def _unshared(self, shared: set[int]) -> Iterator[Entry[T]]:
        for block in self._blocks:
            if id(block) not in shared:
                yield from block.entries


def _split(keys: tuple[str, ...], entries: tuple[Entry[T], ...]) -> list[_Block[T]]:
    if len(keys) <= _BLOCK:
        return [_Block(keys, entries)]
    middle = len(keys) // 2
    return [_Block(keys[:middle], entries[:middle]), _Block(keys[middle:], entries[middle:])]

"""Pages that all show one revision.

The first page pins what the cache holds for 60 s; a token leads back to it. After that, or at another
replica, the same revision is read from etcd; when it has been compacted, PAGE_TOKEN_EXPIRED.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message
from remuda_core.errors import Reason, RemudaError, invalid_argument
from remuda_core.etcd.cache import Entry, PrefixCache, Snapshot
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import Compacted, FutureRevision

from remuda_api.listing.tokens import PageToken, decode, encode
from remuda_api.store.caches import entry_of

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
PIN_SECONDS = 60.0
BREATH = 1000
"""Rows after which others get their turn: a filter may pass over all there are."""
_MOST_PINS = 256

R = TypeVar("R", bound="Row")
R_co = TypeVar("R_co", bound="Row", covariant=True)
M = TypeVar("M", bound=Message)


class Row(Protocol):
    @property
    def key(self) -> str: ...


class View(Protocol[R_co]):
    """Everything of one kind at one revision."""

    @property
    def revision(self) -> int: ...

    def rows(self, prefix: str, start_after: str) -> AsyncIterator[R_co]: ...


class Views(Protocol[R_co]):
    """Where views come from."""

    def present(self) -> View[R_co]: ...

    def past(self, revision: int) -> View[R_co]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Query(Generic[R]):
    """One call of a List rpc."""

    prefix: str
    page_size: int
    page_token: str
    digest: str
    keep: Callable[[R], bool] = lambda _: True
    sort_key: Callable[[R], object] | None = None
    """Order of the pages instead of that of the keys; reads everything, so only where that is little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[R]):
    rows: list[R]
    next_page_token: str
    revision: int


class Pager(Generic[R]):
    """The pins of one kind of resource."""

    def __init__(self, views: Views[R], *, pin_seconds: float = PIN_SECONDS) -> None:
        self._views = views
        self._pin_seconds = pin_seconds
        self._pins: dict[int, tuple[float, View[R]]] = {}

    async def page(self, query: Query[R]) -> Page[R]:
        """Raises RemudaError INVALID_ARGUMENT, PAGE_TOKEN_INVALID, PAGE_TOKEN_EXPIRED."""
        if query.page_size < 0:
            raise invalid_argument("page_size", "must not be negative")
        size = min(query.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        after = ""
        if query.page_token:
            token = decode(query.page_token, query=query.digest, prefix=query.prefix)
            after, view = token.last_key, self._view(token.revision)
        else:
            view = self._views.present()
        try:
            rows, more = await _collect(view, query, after, size)
        except (Compacted, FutureRevision) as error:
            raise RemudaError(
                Reason.PAGE_TOKEN_EXPIRED, "what these pages show is no longer kept: list again"
            ) from error
        if not more:
            return Page(rows=rows, next_page_token="", revision=view.revision)
        self._pin(view)
        token = PageToken(revision=view.revision, last_key=rows[-1].key, query=query.digest)
        return Page(rows=rows, next_page_token=encode(token), revision=view.revision)

    def _view(self, revision: int) -> View[R]:
        expires_at, view = self._pins.get(revision, (0.0, None))
        return view if view is not None and expires_at >= time.monotonic() else self._views.past(revision)

    def _pin(self, view: View[R]) -> None:
        now = time.monotonic()
        for revision in [revision for revision, (expires_at, _) in self._pins.items() if expires_at < now]:
            del self._pins[revision]
        while len(self._pins) >= _MOST_PINS:
            del self._pins[next(iter(self._pins))]
        # The first view of a revision stays: its pages must not change under a client.
        _, pinned = self._pins.pop(view.revision, (0.0, view))
        self._pins[view.revision] = (now + self._pin_seconds, pinned)


async def _collect(view: View[R], query: Query[R], after: str, size: int) -> tuple[list[R], bool]:
    if query.sort_key is not None:
        return await _collect_sorted(view, query, after, size)
    rows: list[R] = []
    async for row in view.rows(query.prefix, after):
        if query.keep(row):
            if len(rows) == size:
                return rows, True
            rows.append(row)
    return rows, False


async def _collect_sorted(view: View[R], query: Query[R], after: str, size: int) -> tuple[list[R], bool]:
    rows = [row async for row in view.rows(query.prefix, "") if query.keep(row)]
    rows.sort(key=query.sort_key)  # type: ignore[arg-type]
    start = next((index + 1 for index, row in enumerate(rows) if row.key == after), 0)
    return rows[start : start + size], len(rows) > start + size


class SnapshotView(Generic[M]):
    """One snapshot of one cache."""

    def __init__(self, snapshot: Snapshot[M]) -> None:
        self.revision = snapshot.revision
        self._snapshot = snapshot

    async def rows(self, prefix: str, start_after: str) -> AsyncIterator[Entry[M]]:
        for number, entry in enumerate(self._snapshot.items(prefix=prefix, start_after=start_after)):
            if number % BREATH == BREATH - 1:
                await asyncio.sleep(0)
            yield entry


class PastView(Generic[M]):
    """The same from etcd, as it stood at a revision."""

    def __init__(self, etcd: Etcd, kind: type[M], revision: int) -> None:
        self.revision = revision
        self._etcd = etcd
        self._kind = kind

    async def rows(self, prefix: str, start_after: str) -> AsyncIterator[Entry[M]]:
        async for page in self._etcd.pages(prefix, revision=self.revision, start_after=start_after):
            for kv in page.kvs:
                yield entry_of(kv, self._kind)


class CacheViews(Generic[M]):
    """Views of one cache."""

    def __init__(self, etcd: Etcd, cache: PrefixCache[M], kind: type[M]) -> None:
        self._etcd = etcd
        self._cache = cache
        self._kind = kind

    def present(self) -> View[Entry[M]]:
        return SnapshotView(self._cache.snapshot())

    def past(self, revision: int) -> View[Entry[M]]:
        return PastView(self._etcd, self._kind, revision)

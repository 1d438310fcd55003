"""Room for base images on the pools of this host.

    promise or hold --> the base's turn: it is there, or is fetched --> disk laid on it --> promise fulfilled
    evict: the base's turn: nobody holds it or was promised it, no disk lies on it, still nobody --> removed

Whoever needs a base says so first and looks for it afterwards, in its turn; whoever removes one looks, in
that turn, for disks on it and then once more for needs. So either the need is seen, or the base is found
gone and is fetched again. A disk that is laid on a base while the disks are listed was promised it, or held
it, all the while.

The bound is soft: a fetch that would go over it makes room first, and goes on when everything else is in use,
as long as the pool itself has room.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import structlog
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId
from remuda_core.images.disk import sync_directory
from remuda_core.images.threads import to_end
from remuda_core.telemetry.metrics import Metrics

from remuda_agent.base_cache.listing import Entry, entries, partials, total
from remuda_agent.base_cache.promises import Promises
from remuda_agent.bounded_calls import BoundedCalls
from remuda_agent.disks.base_turns import BaseTurns
from remuda_agent.disks.pools import LEAST_FREE_BYTES, Pool, Pools
from remuda_agent.disks.readers import DiskReader
from remuda_agent.leftovers.files import backing_files, is_locked

_log = structlog.get_logger(__name__)

T = TypeVar("T")

TEND_SECONDS = 300.0
"""How often the pools are looked through, and how exact the time of last use is for what disks lie on."""
PAUSE_SECONDS = 1.0
"""Between two passes: guests that leave one after the other make one."""
POOL_SECONDS = 30.0
LEFT_OVER_SECONDS = 86400.0
"""A part of a base that nobody has gone on with for so long is removed."""


class BaseCache:
    """Of one host."""

    def __init__(
        self,
        *,
        pools: Pools,
        turns: BaseTurns,
        promises: Promises,
        reader: DiskReader,
        host_id: HostId,
        metrics: Metrics,
        least_free_bytes: int = LEAST_FREE_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pools = pools
        self._turns = turns
        self._promises = promises
        self._reader = reader
        self._host_id = host_id
        self._metrics = metrics
        self._least_free_bytes = least_free_bytes
        self._clock = clock
        self._reserved: dict[Path, int] = {}
        """Size that a base will have when its fetch is done."""
        self._passes = {pool.name: asyncio.Lock() for pool in pools}
        self._wanted = asyncio.Event()
        self._calls = BoundedCalls("pool")

    def wake(self) -> None:
        """A guest has left: what it lay on may go."""
        self._wanted.set()

    async def run(self) -> None:
        """Keeps the bound after guests have left; until cancelled."""
        while True:
            self._wanted.clear()
            for pool in self._pools:
                await self.tend(pool)
            await asyncio.sleep(PAUSE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(TEND_SECONDS):
                    await self._wanted.wait()

    # --- room ---

    @contextmanager
    def fetching(self, base: Path) -> Iterator[None]:
        """Gives back at the end what `make_room` has set aside for the base."""
        try:
            yield
        finally:
            self._reserved.pop(base, None)

    async def make_room(self, pool: Pool, base: Path, size: int) -> None:
        """Before `size` bytes of a base are written. Raises DISK_FULL when the pool cannot hold them,
        whatever is evicted.
        """
        async with self._passes[pool.name]:
            self._reserved[base] = size
            kept, bound = await self._shrink(pool)
            if kept > bound:
                self._metrics.base_cache_overruns.labels(pool=pool.name).inc()
                _log.warning(
                    "base images take more than their bound: all the others are in use",
                    pool=pool.name,
                    bytes=kept,
                    bound=bound,
                )
            lacking = self._least_free_bytes - await self._free(pool)
            if lacking > 0:
                del self._reserved[base]
                message = f"pool {pool.name} has no room for a base image of {size} bytes: {lacking} lack"
                raise RemudaError(Reason.DISK_FULL, message)

    async def tend(self, pool: Pool) -> None:
        """What disks lie on was used just now; old parts go; then the bound is kept."""
        async with self._passes[pool.name]:
            try:
                used = await self._used(pool)
                for entry in await self._entries(pool):
                    if entry.complete and entry.base.resolve() in used:
                        await self._off_loop(_touch, entry.base)
                    await self._remove_parts(pool, entry)
                await self._shrink(pool)
            except (OSError, TimeoutError, RemudaError) as error:
                _log.warning("the base images of a pool are not tended", pool=pool.name, error=str(error))

    async def _shrink(self, pool: Pool) -> tuple[int, int]:
        """Evicts while there is too much, or too little room; bytes that there will be, and the bound."""
        try:
            bound = await self._off_loop(pool.cache_bound)
            listed = await self._entries(pool)
            for entry in listed:
                if self._expected(pool, listed) <= bound and await self._free(pool) >= self._least_free_bytes:
                    break
                if entry.files and await self._evict(pool, entry):
                    listed = [one for one in listed if one is not entry]
        except (OSError, TimeoutError, RemudaError) as error:
            # What cannot be looked through is left alone.
            _log.warning("no base image can be evicted", pool=pool.name, error=str(error))
            return 0, 0
        self._metrics.base_cache_bytes.labels(pool=pool.name).set(total(listed))
        self._metrics.base_cache_bound_bytes.labels(pool=pool.name).set(bound)
        return self._expected(pool, listed), bound

    def _expected(self, pool: Pool, listed: list[Entry]) -> int:
        """Bytes when all the fetches are done."""
        there = {entry.base: entry.bytes for entry in listed}
        coming = {base: size for base, size in self._reserved.items() if base.parent == pool.bases}
        return sum(max(there.get(base, 0), coming.get(base, 0)) for base in there.keys() | coming.keys())

    async def _free(self, pool: Pool) -> int:
        """Bytes that will be free when all the fetches are done."""

        def look() -> int:
            space = os.statvfs(pool.path)
            free = space.f_bavail * space.f_frsize
            coming = {base: size for base, size in reserved.items() if base.parent == pool.bases}
            if coming:
                there = {entry.base: entry.bytes for entry in entries(pool, self._host_id)}
                free -= sum(max(0, size - there.get(base, 0)) for base, size in coming.items())
            return free

        reserved = dict(self._reserved)
        return await self._off_loop(look)

    # --- removing ---

    def _needed(self, base: Path) -> bool:
        return base in self._reserved or self._promises.needs(base)

    async def _evict(self, pool: Pool, entry: Entry) -> bool:
        """False: it stays, somebody needs it."""
        turn = self._turns.turn(entry.base)
        # Never waited for: whoever has it needs the base, and may be waiting for us to make room.
        if turn.locked() or self._needed(entry.base):
            return False
        async with turn:
            if entry.base.resolve() in await self._used(pool):
                return False
            if any([await self._off_loop(is_locked, path) for path in partials(entry)]):
                return False
            if self._needed(entry.base):
                return False
            await to_end(_remove, entry.files)
        _log.info("a base image is evicted", pool=pool.name, base=entry.base.name, bytes=entry.bytes)
        if entry.complete:
            self._metrics.base_cache_evictions.labels(pool=pool.name).inc()
        return True

    async def _remove_parts(self, pool: Pool, entry: Entry) -> None:
        """What fetches have left long ago; beside a base it is nothing but lost bytes."""
        keep = {entry.base, entry.base.with_suffix(".manifest")} if entry.complete else set()
        old = [path for path in entry.files if path not in keep]
        if not old or self._clock() - await self._off_loop(_youngest, old) < LEFT_OVER_SECONDS:
            return
        turn = self._turns.turn(entry.base)
        if turn.locked() or self._needed(entry.base):
            return
        async with turn:
            if any([await self._off_loop(is_locked, path) for path in partials(entry)]):
                return
            if not self._needed(entry.base):
                await to_end(_remove, old)
                _log.info("left-over parts of a base image are removed", pool=pool.name, base=entry.base.name)

    # --- looking ---

    async def _entries(self, pool: Pool) -> list[Entry]:
        return await self._off_loop(entries, pool, self._host_id)

    async def _used(self, pool: Pool) -> set[Path]:
        """Bases that disks lie on, by their real path."""
        return await self._off_loop(backing_files, pool, self._reader)

    async def _off_loop(self, function: Callable[..., T], *args: object) -> T:
        """Raises TimeoutError where a file server has gone."""
        return await self._calls.call(lambda: function(*args), seconds=POOL_SECONDS)


def _touch(base: Path) -> None:
    with suppress(FileNotFoundError):
        os.utime(base)


def _youngest(files: list[Path]) -> float:
    return max(path.stat().st_mtime for path in files)


def _remove(files: tuple[Path, ...] | list[Path]) -> None:
    """In this order: what a crash leaves of it, a manifest without its image, is never taken for a base."""
    for path in files:
        path.unlink(missing_ok=True)
    if files:
        sync_directory(files[0].parent)

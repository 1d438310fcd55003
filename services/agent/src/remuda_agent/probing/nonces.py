"""Files of a unique name in a pool: written on one host and read on another, they prove shared storage.

Every file that this host writes is noted in its state directory first, so that whatever a crash leaves is
known and removed at the next start, and nobody else's probe is ever touched. A leader that dies between
writing and removing leaves nothing either: a file lives for a minute at most.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog
from remuda_core.errors import Reason, RemudaError
from remuda_core.images.disk import sync_directory
from remuda_core.rpc.context import detached, remaining_seconds, timeout_for

from remuda_agent.bounded_calls import BoundedCalls
from remuda_agent.disks.pools import Pool, Pools, read_uid

_log = structlog.get_logger(__name__)
T = TypeVar("T")

PREFIX = ".remuda-probe-"
LIFETIME_SECONDS = 60.0
ABANDONED_SECONDS = 3600.0
"""Older files are nobody's: their host was lost with its notes."""
IO_SECONDS = 10.0
READ_SECONDS = 10.0
"""For a caller without a deadline."""
RETRY_SECONDS = 0.1
ANSWER_SECONDS = 0.3
"""Kept of the caller's deadline for saying that there was no such file."""


class NonceFiles:
    """Of this host's pools; an async context manager, because its files go with it."""

    def __init__(self, pools: Pools, *, notes: Path, lifetime: float = LIFETIME_SECONDS) -> None:
        """``notes``: a directory that survives a crash of the host."""
        self._pools = pools
        self._notes = notes
        self._lifetime = lifetime
        self._calls = BoundedCalls("pool")
        self._ends: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def write(self, pool: str, name: str, content: bytes) -> str:
        """Durable before it returns: the pool's uid. Writing it again is harmless.

        Raises STEP_FAILED for an unknown pool or one that does not answer, DISK_FULL.
        """
        place = self._pools.get(pool)

        def put() -> str:
            with _refused(place):
                self._notes.mkdir(parents=True, exist_ok=True)
                (self._notes / f"{pool}.{name}").touch()
                sync_directory(self._notes)
                # First: what is not mounted has none, and nothing is written below a mount point.
                uid = read_uid(place)
                _write(place.path / f"{PREFIX}{name}", content)
                return uid

        # Before it is written: a write that is given up here may yet be done by the file server.
        if (pool, name) not in self._ends:
            with detached():  # it outlives this call
                self._ends[pool, name] = asyncio.create_task(self._end(pool, name), name="nonce")
        return await self._within(place, put, seconds=timeout_for(IO_SECONDS))

    async def read(self, pool: str, name: str) -> bytes:
        """Its content, empty when there was no such file until shortly before the call's deadline.

        Raises STEP_FAILED for an unknown pool or one that does not answer.
        """
        place = self._pools.get(pool)
        left = remaining_seconds()
        patience = max(0.0, READ_SECONDS if left is None else left - ANSWER_SECONDS)
        end = asyncio.get_running_loop().time() + patience
        while True:
            seconds = max(end - asyncio.get_running_loop().time(), RETRY_SECONDS)
            found = await self._within(place, lambda: _read(place, name), seconds=seconds)
            if found or asyncio.get_running_loop().time() + RETRY_SECONDS > end:
                return found
            await asyncio.sleep(RETRY_SECONDS)

    async def remove(self, pool: str, name: str) -> None:
        """None there is a success. Raises STEP_FAILED as `write`."""
        place = self._pools.get(pool)
        await self._within(place, lambda: self._unlink(place, name), seconds=timeout_for(IO_SECONDS))
        if (end := self._ends.pop((pool, name), None)) is not None:
            end.cancel()

    def sweep(self) -> list[str]:
        """Blocking; at the agent's start. Removes what this host has noted, and what is an hour old."""
        swept = []
        for note in sorted(self._notes.glob("*.*")) if self._notes.is_dir() else []:
            pool, _, name = note.name.partition(".")
            place = next((one for one in self._pools if one.name == pool), None)
            if place is not None and (place.path / f"{PREFIX}{name}").exists():
                swept.append(f"{pool}/{PREFIX}{name}")
            if place is not None:
                self._unlink(place, name)
            else:
                note.unlink(missing_ok=True)  # the pool is no longer this host's
        for place in self._pools:
            for path in sorted(place.path.glob(f"{PREFIX}*")):
                if _age(path) > ABANDONED_SECONDS:
                    path.unlink(missing_ok=True)
                    swept.append(f"{place.name}/{path.name}")
        return swept

    async def __aenter__(self) -> NonceFiles:
        for path in await asyncio.to_thread(self.sweep):
            _log.info("a probe's file was left by a crash; it is removed", file=path)
        return self

    async def __aexit__(self, *_: object) -> None:
        ends = dict(self._ends)
        # All at once: of a pool that hangs each would take its time.
        removals = (self.remove(pool, name) for pool, name in ends)
        for problem in await asyncio.gather(*removals, return_exceptions=True):
            if isinstance(problem, BaseException):  # the notes have it: the next start removes it
                _log.warning("a probe's file stays until the next start", detail=str(problem))
        for end in ends.values():
            end.cancel()
        await asyncio.gather(*ends.values(), return_exceptions=True)

    async def _end(self, pool: str, name: str) -> None:
        await asyncio.sleep(self._lifetime)
        self._ends.pop((pool, name), None)
        try:
            await self._within(
                self._pools.get(pool), lambda: self._unlink(self._pools.get(pool), name), seconds=IO_SECONDS
            )
        except RemudaError as error:
            _log.warning("a probe's file stays until the next start", pool=pool, detail=error.message)

    def _unlink(self, place: Pool, name: str) -> None:
        with _refused(place):
            for path in _paths(place, name):
                path.unlink(missing_ok=True)
            sync_directory(place.path)
            # Last: until here a crash must find the note.
            (self._notes / f"{place.name}.{name}").unlink(missing_ok=True)

    async def _within(self, place: Pool, work: Callable[[], T], *, seconds: float) -> T:
        try:
            return await self._calls.call(work, seconds=seconds)
        except TimeoutError as error:
            raise RemudaError(
                Reason.STEP_FAILED, f"pool {place.name} did not answer within {seconds:.1f} s"
            ) from error


def _paths(place: Pool, name: str) -> tuple[Path, Path]:
    return place.path / f"{PREFIX}{name}", place.path / f"{PREFIX}{name}.new"


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    # Renamed: whoever finds the name finds the whole content.
    draft.rename(path)
    sync_directory(path.parent)


def _read(place: Pool, name: str) -> bytes:
    with _refused(place):
        # A network file system remembers that a name was not there until the directory is read again.
        list(place.path.iterdir())
        try:
            return (place.path / f"{PREFIX}{name}").read_bytes()
        except FileNotFoundError:
            return b""


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


@contextmanager
def _refused(place: Pool) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = Reason.DISK_FULL if full else Reason.STEP_FAILED
        raise RemudaError(reason, f"pool {place.name}: {os.strerror(error.errno or 0).lower()}") from error

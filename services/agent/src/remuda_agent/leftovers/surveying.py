"""Survey: domains, directories and files of this host, or of one instance. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from remuda.agent.v1.agent_pb2 import FoundDirectory, FoundFile, SurveyResponse
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, InstanceId

from remuda_agent.bounded_calls import BoundedCalls
from remuda_agent.disks.pools import Pool, Pools
from remuda_agent.disks.readers import DiskReader
from remuda_agent.leftovers import files
from remuda_agent.observer import Observer

T = TypeVar("T")

POOL_SECONDS = 30.0
"""For looking through one pool, which may be on a file server that has gone."""


class Surveyor:
    def __init__(self, *, observer: Observer, pools: Pools, reader: DiskReader, host_id: HostId) -> None:
        self._observer = observer
        self._pools = pools
        self._reader = reader
        self._host_id = host_id
        self._calls = BoundedCalls("pool")
        self._reading = asyncio.Semaphore(1)

    async def survey(self, instance: InstanceId | None, *, digests: bool = False) -> SurveyResponse:
        """Raises STEP_FAILED for a pool that cannot be looked through: half a list would read as "nothing
        else is there".
        """
        response = SurveyResponse()
        response.time.GetCurrentTime()
        for pool in self._pools:
            response.directories.extend(await self._directories(pool, instance))
        used = set() if instance else await self._used()
        for pool in self._pools:
            response.files.extend(await self._files(pool, instance, used))
        # After the files: a directory whose guest has just been defined is then seen with its domain.
        response.domains.extend(await self.domains(instance))
        if digests:
            await self._add_digests(response)
        return response

    async def domains(self, instance: InstanceId | None) -> list[ObservedInstance]:
        shown = (
            [await self._observer.one(instance)]
            if instance
            else (await self._observer.everything()).instances
        )
        # Copies in quarantine are shown without a domain too: the leader judges those by their directories.
        return [seen for seen in shown if seen.power_state != Instance.POWER_STATE_ABSENT]

    async def directory(self, pool: str, instance: InstanceId) -> FoundDirectory | None:
        """As it is now; None: it is gone. Raises STEP_FAILED."""
        found = await self._directories(self._pools.get(pool), instance)
        return found[0] if found else None

    async def file(self, pool: str, path: str) -> FoundFile | None:
        """A base image or a temporary file as it is now; None: it is gone, or no such. Raises STEP_FAILED."""
        # Found by listing: a path in an order never leads out of the pool.
        found = await self._files(self._pools.get(pool), None, await self._used())
        return next((one for one in found if one.path == path), None)

    async def _directories(self, pool: Pool, instance: InstanceId | None) -> list[FoundDirectory]:
        return await self._within(
            pool, lambda: list(files.find_directories(pool, self._reader, instance or ""))
        )

    async def _files(self, pool: Pool, instance: InstanceId | None, used: set[Path]) -> list[FoundFile]:
        def look() -> list[FoundFile]:
            found = list(files.find_foreign(pool, instance or ""))
            if instance is None:
                found += files.find_files(pool, self._host_id, used, self._reader)
            return found

        return await self._within(pool, look)

    async def _used(self) -> set[Path]:
        """Base images under overlays. One that an overlay comes to lie on just now may be missing; it was
        asked for a moment ago, then, which shows in the time of its last change.
        """
        used: set[Path] = set()
        for pool in self._pools:
            used |= await self._within(pool, lambda pool=pool: files.backing_files(pool, self._reader))  # type: ignore[misc]
        return used

    async def _add_digests(self, response: SurveyResponse) -> None:
        """Where nobody can write: one disk after another, because each is read whole."""
        off = (Instance.POWER_STATE_SHUTOFF, Instance.POWER_STATE_CRASHED)
        active = {one.instance_id for one in response.domains if one.power_state not in off}
        for directory in response.directories:
            for file in directory.files:
                if file.kind != FoundFile.KIND_DISK or directory.instance_id in active:
                    continue
                path = self._pools.get(directory.pool).path / file.path
                async with self._reading:
                    try:
                        file.digest = await self._reader.digest(path)
                    except RemudaError:
                        file.ClearField("digest")  # in use, or a part of it is missing: nothing is proven

    async def _within(self, pool: Pool, work: Callable[[], T]) -> T:
        try:
            return await self._calls.call(work, seconds=POOL_SECONDS)
        except TimeoutError as error:
            message = f"pool {pool.name} did not answer within {POOL_SECONDS:.0f} s"
            raise RemudaError(Reason.STEP_FAILED, message) from error
        except OSError as error:
            raise RemudaError(Reason.STEP_FAILED, f"pool {pool.name}: {error}") from error

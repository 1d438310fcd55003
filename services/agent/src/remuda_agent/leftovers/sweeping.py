"""Sweep: removes exactly what the leader names, each thing only if it is still as it was shown.

The leader judged a listing that is a moment old. What has changed since is not what it judged, so it stays;
what belongs to an instance is removed in that instance's turn, between two steps and never inside one. A
leader that has been succeeded meanwhile removes no more.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from google.protobuf.message import Message
from remuda.agent.v1.agent_pb2 import (
    FoundDirectory,
    FoundFile,
    StepOutput,
    SweepReceipt,
    SweepRequest,
    SweepTarget,
)
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_core.errors import RemudaError
from remuda_core.ids import HostId, InstanceId
from remuda_core.images.disk import sync_directory

from remuda_agent.disks.base_turns import BaseTurns
from remuda_agent.disks.instance_files import clear_directory
from remuda_agent.disks.pools import Pools
from remuda_agent.hypervisor import Hypervisor
from remuda_agent.jobs import Job, JobTable
from remuda_agent.leaders import LeaderGuard
from remuda_agent.leftovers.receipts import Receipts
from remuda_agent.leftovers.surveying import Surveyor

_log = structlog.get_logger(__name__)

_OFF = (Instance.POWER_STATE_SHUTOFF, Instance.POWER_STATE_CRASHED)
_CHANGED = "it has changed since it was shown"


class Sweeper:
    def __init__(
        self,
        *,
        leaders: LeaderGuard,
        jobs: JobTable,
        hypervisor: Hypervisor,
        surveyor: Surveyor,
        pools: Pools,
        base_turns: BaseTurns,
        receipts: Receipts,
        host_id: HostId,
    ) -> None:
        self._leaders = leaders
        self._jobs = jobs
        self._hypervisor = hypervisor
        self._surveyor = surveyor
        self._pools = pools
        self._base_turns = base_turns
        self._receipts = receipts
        self._host_id = host_id

    async def sweep(self, request: SweepRequest) -> list[SweepReceipt]:
        """One receipt per target, in order. Raises STALE_LEADER, also in the middle: what was removed by then
        has its receipt on this host.
        """
        receipts = []
        for target in request.targets:
            self._leaders.check(request.leader)
            stays = await self._remove(request, target)
            receipts.append(SweepReceipt(removed=not stays, reason=stays))
        return receipts

    async def _remove(self, request: SweepRequest, target: SweepTarget) -> str:
        """Why it stays; empty: it is gone."""
        try:
            match target.WhichOneof("target"):
                case "directory":
                    return await self._in_turn(
                        request, target, target.directory.instance_id, lambda: self._directory(target)
                    )
                case "domain":
                    return await self._in_turn(
                        request, target, target.domain.instance_id, lambda: self._domain(target)
                    )
                case _:
                    return await self._file(request, target)
        except (RemudaError, OSError) as error:
            return str(error)

    # --- what belongs to an instance ---

    async def _in_turn(
        self, request: SweepRequest, target: SweepTarget, instance: str, act: Callable[[], Awaitable[str]]
    ) -> str:
        """As a job among the steps of its instance: no step runs while it is looked at and removed."""
        stays = ""

        async def work(_: Job) -> StepOutput:
            nonlocal stays
            self._leaders.check(request.leader)  # the turn may have been long in coming
            stays = await self._noted(request, target, act)
            return StepOutput()

        key = StepKey(
            operation_id=str(uuid.uuid4()),
            step=f"{target.WhichOneof('target')}_swept",
            direction=StepKey.DIRECTION_DO,
            instance_id=instance,
            leader=request.leader,
        )
        job, _ = self._jobs.start_or_join(key, work)
        await job.result()
        return stays

    async def _directory(self, target: SweepTarget) -> str:
        shown = target.directory
        instance = InstanceId(shown.instance_id)
        if shown.owner_host_id != self._host_id:
            return "its owner.json does not name this host"
        now = await self._surveyor.directory(shown.pool, instance)
        if now is None:
            return ""
        if not _same_directory(shown, now):
            return _CHANGED
        if any(seen.power_state not in _OFF for seen in await self._surveyor.domains(instance)):
            return "a domain of the instance is active here"
        await asyncio.to_thread(clear_directory, self._pools.get(shown.pool).instances / instance)
        return ""

    async def _domain(self, target: SweepTarget) -> str:
        shown = target.domain
        instance = InstanceId(shown.instance_id)
        seen = await self._surveyor.domains(instance)
        if not seen:
            return ""
        if seen[0].power_state not in _OFF:
            return "it is active: what runs is never removed"
        if not _same_domain(shown, seen[0]):
            return _CHANGED
        await self._hypervisor.undefine(instance)
        return ""

    # --- what belongs to none ---

    async def _file(self, request: SweepRequest, target: SweepTarget) -> str:
        shown = target.file
        if shown.kind not in (FoundFile.KIND_BASE_IMAGE, FoundFile.KIND_TEMPORARY):
            return "files of this kind are never removed"
        place = self._pools.get(shown.pool)
        if place.shared and shown.kind == FoundFile.KIND_BASE_IMAGE:
            return "other hosts share the pool and may need it"
        path = place.path / shown.path

        async def act() -> str:
            now = await self._surveyor.file(shown.pool, shown.path)
            if now is None:
                return ""
            if now.in_use:
                return "it is in use"
            if now != shown:
                return _CHANGED
            await asyncio.to_thread(_unlink, path)
            return ""

        # Not while it is fetched or asked for: whoever asks next finds it gone, and fetches it.
        async with self._base_turns.turn(path):
            return await self._noted(request, target, act)

    async def _noted(
        self, request: SweepRequest, target: SweepTarget, act: Callable[[], Awaitable[str]]
    ) -> str:
        what = {
            "what": _words(target),
            "why": target.reason,
            "principal": request.principal,
            "leader_epoch": request.leader.epoch,
        }
        await asyncio.to_thread(self._receipts.write, {**what, "outcome": "removing"})
        try:
            stays = await act()
        except (RemudaError, OSError) as error:
            stays = str(error)
        outcome: dict[str, object] = (
            {"outcome": "stays", "because": stays} if stays else {"outcome": "removed"}
        )
        await asyncio.to_thread(self._receipts.write, {**what, **outcome})
        _log.info("swept", **what, **outcome)
        return stays


def _same_directory(shown: FoundDirectory, now: FoundDirectory) -> bool:
    """A digest was asked for or not; all else tells of the thing itself."""
    return _bare(shown) == _bare(now)


def _bare(directory: FoundDirectory) -> Message:
    bare = FoundDirectory()
    bare.CopyFrom(directory)
    for file in bare.files:
        file.ClearField("digest")
    return bare


def _same_domain(shown: ObservedInstance, now: ObservedInstance) -> bool:
    return (shown.epoch, shown.operation_id, shown.power_state) == (
        now.epoch,
        now.operation_id,
        now.power_state,
    )


def _words(target: SweepTarget) -> str:
    match target.WhichOneof("target"):
        case "directory":
            one = target.directory
            return f"directory {one.pool}/instances/{one.instance_id}, epoch {one.epoch}, {one.role}"
        case "domain":
            return f"definition of {target.domain.instance_id}, epoch {target.domain.epoch}"
        case _:
            return f"file {target.file.pool}/{target.file.path}, {target.file.allocated_bytes} bytes"


def _unlink(path: Path) -> None:
    path.unlink()
    if path.suffix == ".raw":
        path.with_suffix(".manifest").unlink(missing_ok=True)
    sync_directory(path.parent)

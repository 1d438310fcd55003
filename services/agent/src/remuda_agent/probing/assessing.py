"""Whether this host could take a guest that runs on another."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Protocol

from remuda.agent.v1 import probe_pb2 as pb
from remuda_core.errors import Reason, RemudaError
from remuda_core.images.base_file import base_path
from remuda_core.rpc.context import timeout_for

from remuda_agent.bounded_calls import BoundedCalls
from remuda_agent.disks.digests import parse_digest
from remuda_agent.disks.pools import UID_FILE, Pool, Pools
from remuda_agent.hypervisor import CpuComparison, Hypervisor
from remuda_agent.network.bridges import Bridges
from remuda_agent.overrides import FactsOverride
from remuda_agent.probing.describing import facts_of

POOL_SECONDS = 5.0

_CPU: Mapping[CpuComparison, pb.AssessGuestResponse.Cpu.ValueType] = {
    CpuComparison.IDENTICAL: pb.AssessGuestResponse.CPU_IDENTICAL,
    CpuComparison.SUPERSET: pb.AssessGuestResponse.CPU_SUPERSET,
    CpuComparison.INCOMPATIBLE: pb.AssessGuestResponse.CPU_INCOMPATIBLE,
}


class ImageSources(Protocol):
    """Where base images come from that are not cached."""

    async def problem(self) -> str:
        """Why none could be fetched now; empty: it could."""
        ...


class GuestAssessor:
    """Asks the hypervisor, the pools, the bridges and the image stores of this host, all at once."""

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        pools: Pools,
        bridges: Bridges,
        images: ImageSources,
        override: FactsOverride,
    ) -> None:
        self._hypervisor = hypervisor
        self._pools = pools
        self._bridges = bridges
        self._images = images
        self._override = override
        self._files = BoundedCalls("pool")

    async def assess(self, request: pb.AssessGuestRequest) -> pb.AssessGuestResponse:
        """Raises HYPERVISOR_ERROR when the hypervisor is not there at all, STEP_FAILED for a pool that does
        not answer, INVALID_ARGUMENT for a digest that is none.
        """
        real, (cpu, cpu_detail), (pool_uid, available, cached), problem = await asyncio.gather(
            self._hypervisor.capabilities(),
            self._cpu(request.guest),
            self._pool(request),
            self._base(request),
        )
        here = self._override.capabilities(real)
        return pb.AssessGuestResponse(
            cpu=cpu,
            cpu_detail=cpu_detail,
            machine_type_offered=request.guest.machine_type in here.machine_types,
            machine_types=here.machine_types,
            libvirt_version=here.libvirt_version,
            qemu_version=here.qemu_version,
            domain_type=here.domain_type,
            bridges=self._bridges_of(request),
            pool_available_bytes=available,
            pool_uid=pool_uid,
            base_image_cached=cached,
            base_image_problem="" if cached else problem,
            overridden=self._override.names,
        )

    async def _cpu(self, guest: pb.GuestFacts) -> tuple[pb.AssessGuestResponse.Cpu.ValueType, str]:
        try:
            verdict = await self._hypervisor.compare_cpu(facts_of(guest))
        except RemudaError as error:
            # The other answers are worth having all the same.
            return pb.AssessGuestResponse.CPU_UNSPECIFIED, error.message
        verdict = self._override.verdict(verdict)
        return _CPU[verdict.comparison], verdict.detail

    def _bridges_of(self, request: pb.AssessGuestRequest) -> dict[str, str]:
        offered = set(self._bridges.physical_networks())
        return {name: self._bridges.bridge(name) for name in request.physical_networks if name in offered}

    async def _pool(self, request: pb.AssessGuestRequest) -> tuple[str, int, bool]:
        """uid, free bytes, and whether the base image is cached in it."""
        pool = next((pool for pool in self._pools if pool.name == request.pool), None)
        if pool is None:
            return "", 0, False
        digest = parse_digest(request.manifest_digest) if request.image_id else None

        def look() -> tuple[str, int, bool]:
            cached = digest is not None and base_path(pool.bases, digest).exists()
            return _written_uid(pool), _available(pool), cached

        try:
            return await self._files.call(look, seconds=timeout_for(POOL_SECONDS))
        except TimeoutError as error:
            raise RemudaError(Reason.STEP_FAILED, f"pool {pool.name} does not answer") from error
        except OSError as error:
            raise RemudaError(Reason.STEP_FAILED, f"pool {pool.name}: {error}") from error

    async def _base(self, request: pb.AssessGuestRequest) -> str:
        return await self._images.problem() if request.image_id else ""


def _written_uid(pool: Pool) -> str:
    """Never drawn here: a file system that is not mounted must not look like a pool of its own."""
    try:
        return (pool.path / UID_FILE).read_text().strip()
    except FileNotFoundError:
        return ""


def _available(pool: Pool) -> int:
    space = os.statvfs(pool.path)
    return space.f_bavail * space.f_frsize

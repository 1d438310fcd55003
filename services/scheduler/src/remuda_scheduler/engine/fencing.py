"""Orders go only to agents that know this leader.

Before its first order in a term each host acknowledges the leader (Fence): from then on it refuses the one
before. A leader that was paused can therefore, at worst, still run the step that was open when it lost its
term, and that is the step which its successor repeats, joins or undoes.
"""

import asyncio
from collections.abc import Callable, Sequence

from remuda.agent.v1.agent_pb2 import (
    RunStepRequest,
    StepOutput,
    SurveyResponse,
    SweepReceipt,
    SweepTarget,
)
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.agent.v1.migration_pb2 import MigrationEnded, StartMigration
from remuda.compute.v1.migration_pb2 import MigrationMilestone, MigrationProgress
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId, InstanceId

from remuda_scheduler.ports import Agents, OnProgress, Steering

SURVEY_SECONDS = 40.0
"""An agent gives a pool 30 s."""


class FencedAgents:
    """The port `Agents`, with the handshake before the first order. For one term."""

    def __init__(self, agents: Agents, leader: LeaderRef, fenced: Callable[[HostId], bool]) -> None:
        """`fenced`: whether it is proven that nothing runs on a host; such a host is not asked."""
        self.leader = leader
        self._agents = agents
        self._fenced = fenced
        self._acknowledged: set[HostId] = set()
        self._turns: dict[HostId, asyncio.Lock] = {}

    async def fence(self, host: HostId, leader: LeaderRef | None = None) -> None:
        if self._fenced(host):
            raise RemudaError(Reason.HOST_UNREACHABLE, f"host {host} is fenced", metadata={"host": host})
        async with self._turns.setdefault(host, asyncio.Lock()):
            if host not in self._acknowledged:
                await self._agents.fence(host, leader or self.leader)
                self._acknowledged.add(host)

    async def run_step(self, host: HostId, request: RunStepRequest, *, on_progress: OnProgress) -> StepOutput:
        await self.fence(host)
        return await self._agents.run_step(host, request, on_progress=on_progress)

    async def migrate(
        self,
        host: HostId,
        start: StartMigration,
        *,
        on_progress: Callable[[MigrationProgress], None],
        on_milestone: Callable[[MigrationMilestone], None],
        cancel: asyncio.Event,
        steering: Steering,
    ) -> MigrationEnded:
        await self.fence(host)
        return await self._agents.migrate(
            host,
            start,
            on_progress=on_progress,
            on_milestone=on_milestone,
            cancel=cancel,
            steering=steering,
        )

    async def observe(self, host: HostId, instance: InstanceId) -> ObservedInstance:
        await self.fence(host)
        return await self._agents.observe(host, instance)

    async def survey(
        self,
        host: HostId,
        instance: InstanceId | None = None,
        *,
        digests: bool = False,
        seconds: float = SURVEY_SECONDS,
    ) -> SurveyResponse:
        await self.fence(host)
        return await self._agents.survey(
            host, self.leader, instance=instance, digests=digests, seconds=seconds
        )

    async def sweep(
        self, host: HostId, targets: Sequence[SweepTarget], *, principal: str
    ) -> Sequence[SweepReceipt]:
        await self.fence(host)
        return await self._agents.sweep(host, self.leader, targets, principal=principal)

    async def offer_chunks(
        self,
        host: HostId,
        *,
        image: ImageId,
        manifest_digest: str,
        digests: Sequence[bytes],
        grant: SignedGrant,
    ) -> int:
        await self.fence(host)
        return await self._agents.offer_chunks(
            host,
            self.leader,
            image=image,
            manifest_digest=manifest_digest,
            digests=digests,
            grant=grant,
        )

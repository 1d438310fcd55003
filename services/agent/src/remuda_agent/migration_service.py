"""MigrationService.Migrate: commands down, progress up, one stream per migration."""

import asyncio
from collections.abc import AsyncIterator

import grpc
from google.rpc.status_pb2 import Status
from remuda.agent.v1 import migration_pb2 as pb
from remuda.agent.v1 import migration_pb2_grpc
from remuda_core.errors import RemudaError, invalid_argument
from remuda_core.rpc.status import to_status

from remuda_agent.jobs import Job
from remuda_agent.leaders import LeaderGuard
from remuda_agent.migrating import Migrations


class MigrationService(migration_pb2_grpc.MigrationServiceServicer):
    """Only the leader calls it; which leader is checked here."""

    def __init__(self, *, leaders: LeaderGuard, migrations: Migrations) -> None:
        self._leaders = leaders
        self._migrations = migrations

    async def Migrate(
        self,
        request_iterator: AsyncIterator[pb.MigrateRequest],
        context: "grpc.aio.ServicerContext[pb.MigrateRequest, pb.MigrateResponse]",
    ) -> AsyncIterator[pb.MigrateResponse]:
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("start"):
            raise invalid_argument("start", "the first message must start or join a migration")
        self._leaders.acknowledge(first.start.key.leader)
        job, joined = self._migrations.start_or_join(first.start)
        yield pb.MigrateResponse(accepted=pb.MigrationAccepted(joined=joined))
        commands = asyncio.create_task(_obey(request_iterator, job))
        try:
            async for message in self._follow(first.start, job):
                yield message
        finally:
            commands.cancel()
            await asyncio.gather(commands, return_exceptions=True)

    async def _follow(self, start: pb.StartMigration, job: Job) -> AsyncIterator[pb.MigrateResponse]:
        """Progress, every milestone from the first, and the end."""
        operation = start.key.operation_id
        told = 0
        async for progress in job.follow():
            for milestone in self._migrations.milestones(operation)[told:]:
                told += 1
                yield pb.MigrateResponse(milestone=milestone)
            yield pb.MigrateResponse(progress=progress.migration)
        try:
            await job.result()
            ended = self._migrations.ended(operation)
            ended.status.CopyFrom(Status())
        except RemudaError as error:
            ended = pb.MigrationEnded(status=to_status(error, request_id=start.key.request_id))
        for milestone in self._migrations.milestones(operation)[told:]:
            yield pb.MigrateResponse(milestone=milestone)
        yield pb.MigrateResponse(ended=ended)


async def _obey(requests: AsyncIterator[pb.MigrateRequest], job: Job) -> None:
    async for request in requests:
        if request.HasField("cancel"):
            job.stop.set()

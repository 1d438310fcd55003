"""MigrationService.Migrate: commands down, progress up, one stream per migration."""

import asyncio
from collections.abc import AsyncIterator

import grpc
from google.rpc.status_pb2 import Status
from remuda.agent.v1 import migration_pb2 as pb
from remuda.agent.v1 import migration_pb2_grpc
from remuda.compute.v1.migration_pb2 import CommandResult
from remuda_core.errors import RemudaError, invalid_argument
from remuda_core.rpc.status import to_status

from remuda_agent.jobs import Job
from remuda_agent.leaders import LeaderGuard
from remuda_agent.migrating import Migrations
from remuda_agent.migration_answers import Answers
from remuda_agent.migration_commands import refusal_of


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
        answers = Answers()
        commands = asyncio.create_task(self._obey(request_iterator, first.start, job, answers))
        try:
            async for message in self._follow(first.start, job, answers):
                yield message
        finally:
            commands.cancel()
            await asyncio.gather(commands, return_exceptions=True)
            await answers.close()

    async def _obey(
        self,
        requests: AsyncIterator[pb.MigrateRequest],
        start: pb.StartMigration,
        job: Job,
        answers: "Answers",
    ) -> None:
        async for request in requests:
            if request.HasField("cancel") and not request.command_id:
                # The leader's own, which asks for no answer: it sees how the migration ends.
                self._leaders.check(start.key.leader)
                job.stop.set()
            elif not request.HasField("start"):
                await answers.expect(request.command_id, self._taken(request, start))

    def _taken(self, request: pb.MigrateRequest, start: pb.StartMigration) -> "asyncio.Future[CommandResult]":
        try:
            # A stream that a newer leader has overtaken commands nothing any more.
            self._leaders.check(start.key.leader)
        except RemudaError as stale:
            refused: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()
            refused.set_result(refusal_of(request, stale))
            return refused
        return self._migrations.command(start.key.operation_id, request)

    async def _follow(
        self, start: pb.StartMigration, job: Job, answers: "Answers"
    ) -> AsyncIterator[pb.MigrateResponse]:
        """Progress, answers, every milestone from the first, and the end."""
        operation = start.key.operation_id
        told = 0
        async for message in answers.among(job.follow()):
            for milestone in self._migrations.milestones(operation)[told:]:
                told += 1
                yield pb.MigrateResponse(milestone=milestone)
            yield message
        try:
            await job.result()
            ended = self._migrations.ended(operation)
            ended.status.CopyFrom(Status())
        except RemudaError as error:
            ended = pb.MigrationEnded(status=to_status(error, request_id=start.key.request_id))
        for milestone in self._migrations.milestones(operation)[told:]:
            yield pb.MigrateResponse(milestone=milestone)
        yield pb.MigrateResponse(ended=ended)

"""LiveService: what the api asks of the leader."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import grpc
from remuda.scheduler.v1 import live_pb2 as pb
from remuda.scheduler.v1 import live_pb2_grpc
from remuda_core.errors import not_found
from remuda_core.ids import HostId, InstanceId, OperationId

from remuda_scheduler.live.control import control
from remuda_scheduler.live.requests import placement_request
from remuda_scheduler.placement.explain import explain
from remuda_scheduler.preflight.asking import check_migration
from remuda_scheduler.term import Term

EXPLAIN_PATIENCE_SECONDS = 5.0
"""For hosts that a new leader does not know yet; the caller waits meanwhile."""


class LiveService(live_pb2_grpc.LiveServiceServicer):
    """`term` gives the running leadership, or raises NOT_LEADER / NO_LEADER."""

    def __init__(self, *, term: Callable[[], Term]) -> None:
        self._term = term

    async def WatchProgress(
        self,
        request: pb.WatchProgressRequest,
        context: "grpc.aio.ServicerContext[pb.WatchProgressRequest, pb.WatchProgressResponse]",
    ) -> AsyncIterator[pb.WatchProgressResponse]:
        async for progress in self._term().hub.watch(OperationId(request.operation_id)):
            yield pb.WatchProgressResponse(progress=progress)

    async def Explain(
        self,
        request: pb.ExplainRequest,
        context: "grpc.aio.ServicerContext[pb.ExplainRequest, pb.ExplainResponse]",
    ) -> pb.ExplainResponse:
        term = self._term()
        wanted = placement_request(term.store, request.request)
        plan = await term.placer.plan(wanted, patience=EXPLAIN_PATIENCE_SECONDS)
        return pb.ExplainResponse(explanation=explain(plan))

    async def CheckMigration(
        self,
        request: pb.CheckMigrationRequest,
        context: "grpc.aio.ServicerContext[pb.CheckMigrationRequest, pb.CheckMigrationResponse]",
    ) -> pb.CheckMigrationResponse:
        term, instance = self._term(), InstanceId(request.instance_id)
        found = await check_migration(term.store, term.preflight, instance, request.request)
        return pb.CheckMigrationResponse(response=found)

    async def PlanReconcile(
        self,
        request: pb.PlanReconcileRequest,
        context: "grpc.aio.ServicerContext[pb.PlanReconcileRequest, pb.PlanReconcileResponse]",
    ) -> pb.PlanReconcileResponse:
        report = await self._term().reconciler.plan(InstanceId(request.instance_id))
        return pb.PlanReconcileResponse(report=report)

    async def SweepHost(
        self,
        request: pb.SweepHostRequest,
        context: "grpc.aio.ServicerContext[pb.SweepHostRequest, pb.SweepHostResponse]",
    ) -> pb.SweepHostResponse:
        swept = await self._term().janitor.sweep(
            HostId(request.host_id), validate_only=request.validate_only, principal=request.principal
        )
        return pb.SweepHostResponse(response=swept)

    async def ControlMigration(
        self,
        request_iterator: AsyncIterator[pb.ControlMigrationRequest],
        context: "grpc.aio.ServicerContext[pb.ControlMigrationRequest, pb.ControlMigrationResponse]",
    ) -> AsyncIterator[pb.ControlMigrationResponse]:
        async with aclosing(control(self._term, request_iterator)) as events:
            async for event in events:
                yield pb.ControlMigrationResponse(event=event)

    async def ReadConsole(
        self,
        request: pb.ReadConsoleRequest,
        context: "grpc.aio.ServicerContext[pb.ReadConsoleRequest, pb.ReadConsoleResponse]",
    ) -> pb.ReadConsoleResponse:
        term = self._term()
        instance = InstanceId(request.instance_id)
        status = term.store.statuses.get(term.store.keys.instance_status(instance))
        if status is None or not status.value.host_id:
            raise not_found(f"projects/-/instances/{instance}")
        output, truncated = await term.agents.read_console(
            HostId(status.value.host_id), instance, request.max_bytes
        )
        return pb.ReadConsoleResponse(output=output, truncated=truncated)

"""The leader of the schedulers, as the gateway needs it: found in etcd, asked over gRPC, lost at times."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import Message
from remuda.compute.v1 import host_pb2, migration_pb2, moving_pb2, reconcile_pb2
from remuda.compute.v1 import operation_pb2 as public
from remuda.scheduler.v1 import live_pb2
from remuda.scheduler.v1.live_pb2_grpc import LiveServiceStub
from remuda_core.errors import Reason, RemudaError, no_leader
from remuda_core.ids import HostId, InstanceId, OperationId
from remuda_core.rpc.context import outgoing, timeout_for
from remuda_core.rpc.status import from_rpc_error

from remuda_api.store.caches import Caches
from remuda_api.store.operations import packed

if TYPE_CHECKING:
    from remuda.scheduler.v1.live_pb2_grpc import LiveServiceAsyncStub

_log = logging.getLogger(__name__)

T = TypeVar("T")
OpenChannel = Callable[[str], grpc.aio.Channel]
Command = migration_pb2.ControlMigrationRequest

# How long an rpc goes on asking an endpoint in etcd that does not answer as the leader: the key of a leader
# that died stands there until its lease ends.
_PATIENCE_SECONDS = 2.0
_CALL_SECONDS = 10.0
# Real probes on hosts that may not answer.
_CHECK_SECONDS = 45.0
# Every host is asked, and one that is silent is waited for.
_PLAN_SECONDS = 60.0
# A host is listed, compared with others and swept, one thing after another.
_SWEEP_SECONDS = 600.0
# No limit of its own: the caller's deadline counts.
_STREAM_SECONDS = 24 * 3600.0
# Jitter of a re-subscription: all watchers of all replicas come back at once after an election.
_RESUBSCRIBE_SECONDS = (0.1, 2.0)
_MOVED = frozenset({Reason.NOT_LEADER, Reason.NO_LEADER, Reason.UNAVAILABLE, Reason.SHUTTING_DOWN})


class LeaderLink:
    """Use within the event loop that made it; `close` ends its channels."""

    def __init__(self, caches: Caches, open_channel: OpenChannel) -> None:
        self._caches = caches
        self._open_channel = open_channel
        self._channels: dict[str, grpc.aio.Channel] = {}

    @property
    def endpoint(self) -> str:
        """host:port, empty while nobody leads."""
        entry = self._caches.leader.get(self._caches.keys.leader)
        return entry.value.endpoint if entry is not None else ""

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def explain(self, request: Message) -> public.PlacementExplanation:
        """Raises RemudaError NO_LEADER."""
        asked = live_pb2.ExplainRequest(request=packed(request))

        async def ask(stub: "LiveServiceAsyncStub") -> live_pb2.ExplainResponse:
            return await stub.Explain(asked, **outgoing(_CALL_SECONDS))

        return (await self._ask(ask)).explanation

    async def read_console(self, instance: InstanceId, max_bytes: int) -> live_pb2.ReadConsoleResponse:
        """Raises RemudaError NO_LEADER, HOST_UNREACHABLE."""
        asked = live_pb2.ReadConsoleRequest(instance_id=instance, max_bytes=max_bytes)

        async def ask(stub: "LiveServiceAsyncStub") -> live_pb2.ReadConsoleResponse:
            return await stub.ReadConsole(asked, **outgoing(_CALL_SECONDS))

        return await self._ask(ask)

    async def progress(self, operation: OperationId) -> AsyncIterator[public.Progress]:
        """Live progress for as long as somebody reads it; over changes of the leader, without an end."""
        request = live_pb2.WatchProgressRequest(operation_id=operation)
        while True:
            try:
                async for response in self._stub().WatchProgress(request, **outgoing(_STREAM_SECONDS)):
                    yield response.progress
            except grpc.aio.AioRpcError as error:
                _log.debug("progress of %s: %s", operation, error.details())
            except RemudaError as error:
                _log.debug("progress of %s: %s", operation, error)
            await asyncio.sleep(random.uniform(*_RESUBSCRIBE_SECONDS))

    async def check_migration(
        self, instance: InstanceId, request: moving_pb2.CheckMigrationRequest
    ) -> moving_pb2.CheckMigrationResponse:
        """Raises RemudaError NO_LEADER, and what the leader's preflight raises."""
        asked = live_pb2.CheckMigrationRequest(instance_id=instance, request=request)

        async def ask(stub: "LiveServiceAsyncStub") -> live_pb2.CheckMigrationResponse:
            return await stub.CheckMigration(asked, **outgoing(_CHECK_SECONDS))

        return (await self._ask(ask)).response

    async def plan_reconcile(self, instance: InstanceId) -> reconcile_pb2.ReconcileReport:
        """Raises RemudaError NO_LEADER, INSTANCE_NOT_FOUND."""
        asked = live_pb2.PlanReconcileRequest(instance_id=instance)

        async def ask(stub: "LiveServiceAsyncStub") -> live_pb2.PlanReconcileResponse:
            return await stub.PlanReconcile(asked, **outgoing(_PLAN_SECONDS))

        return (await self._ask(ask)).report

    async def sweep_host(
        self, host: HostId, *, validate_only: bool, principal: str
    ) -> host_pb2.SweepHostResponse:
        """Raises RemudaError NO_LEADER, HOST_NOT_FOUND, HOST_UNREACHABLE, STEP_FAILED."""
        asked = live_pb2.SweepHostRequest(host_id=host, validate_only=validate_only, principal=principal)

        async def ask(stub: "LiveServiceAsyncStub") -> live_pb2.SweepHostResponse:
            return await stub.SweepHost(asked, **outgoing(_SWEEP_SECONDS))

        return (await self._ask(ask)).response

    async def control(
        self, operation: OperationId, commands: Callable[[], AsyncGenerator[Command, None]]
    ) -> AsyncIterator[migration_pb2.ControlMigrationResponse]:
        """Answers and progress of a migration, over changes of the leader, without an end. `commands` gives
        those without an answer, and is asked anew for every leader.
        """
        while True:
            try:
                call = self._stub().ControlMigration(**outgoing(_STREAM_SECONDS))
                sending = asyncio.create_task(_send(call, operation, commands))
                try:
                    async for response in call:
                        yield response.event
                finally:
                    sending.cancel()
                    # Its own failure says no more than the end of the stream does.
                    await asyncio.gather(sending, return_exceptions=True)
                    call.cancel()
            except grpc.aio.AioRpcError as error:
                _log.debug("control of %s: %s", operation, error.details())
            except RemudaError as error:
                _log.debug("control of %s: %s", operation, error)
            await asyncio.sleep(random.uniform(*_RESUBSCRIBE_SECONDS))

    async def _ask(self, ask: "Callable[[LiveServiceAsyncStub], Awaitable[T]]") -> T:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + timeout_for(_PATIENCE_SECONDS)
        while True:
            stub = self._stub()
            try:
                return await ask(stub)
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error)
                if failure.reason not in _MOVED:
                    raise failure from error
            pause = random.uniform(0.1, 0.5)
            if loop.time() + pause >= give_up:
                raise no_leader()
            await asyncio.sleep(pause)

    def _stub(self) -> "LiveServiceAsyncStub":
        endpoint = self.endpoint
        if not endpoint:
            raise no_leader()
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = self._channels[endpoint] = self._open_channel(endpoint)
        return LiveServiceStub(channel)


async def _send(
    call: "grpc.aio.StreamStreamCall[live_pb2.ControlMigrationRequest, live_pb2.ControlMigrationResponse]",
    operation: OperationId,
    commands: Callable[[], AsyncGenerator[Command, None]],
) -> None:
    await call.write(live_pb2.ControlMigrationRequest(operation_id=operation))
    async with aclosing(commands()) as asked:
        async for command in asked:
            await call.write(live_pb2.ControlMigrationRequest(command=command))

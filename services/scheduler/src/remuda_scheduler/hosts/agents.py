"""Orders to agents: the port that sagas speak through, over gRPC.

An agent's answer comes as a Status inside the stream, or as an error with our ErrorInfo. All else was said by
the transport, by a proxy or by a server that broke (unreachable, cut off, INTERNAL, UNKNOWN): the outcome is
unknown then. Steps are detached jobs on the host, so the way on is always to call again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import grpc
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from remuda.agent.v1 import agent_pb2, agent_pb2_grpc, migration_pb2, migration_pb2_grpc
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.compute.v1.migration_pb2 import ControlMigrationRequest, MigrationMilestone, MigrationProgress
from remuda.compute.v1.operation_pb2 import Progress
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_core.errors import DOMAIN, Reason, RemudaError
from remuda_core.ids import HostId, ImageId, InstanceId
from remuda_core.rpc.first_status import FirstStatus
from remuda_core.rpc.status import from_status, rpc_error_status

from remuda_scheduler.ports import Steering

ANSWER_SECONDS = 10.0
"""For rpcs that only look or note; steps carry deadlines of their own."""
OFFER_SECONDS = 300.0
"""As many chunks as one order may name, read and sent."""
SWEEP_SECONDS = 120.0
"""One removal after another, each in the turn of its instance."""

_TRANSPORT = frozenset({Reason.UNAVAILABLE, Reason.DEADLINE_EXCEEDED, Reason.SHUTTING_DOWN, Reason.CANCELLED})


class AgentClients:
    """One channel per agent endpoint, opened when first needed."""

    def __init__(
        self,
        *,
        open_channel: Callable[[str], grpc.aio.Channel],
        endpoint_of: Callable[[HostId], str | None],
    ) -> None:
        self._open_channel = open_channel
        self._endpoint_of = endpoint_of
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))
        self._channels.clear()

    async def fence(self, host: HostId, leader: LeaderRef) -> str:
        """Makes the host refuse older leaders; returns its boot id."""
        stub = agent_pb2_grpc.AgentServiceStub(self.channel(host))
        try:
            answer = await stub.Fence(agent_pb2.FenceRequest(leader=leader), timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError as failure:
            raise meaning(host, failure) from failure
        return answer.boot_id

    async def observe(self, host: HostId, instance: InstanceId) -> ObservedInstance:
        """What the host shows of the instance now. Raises HOST_UNREACHABLE."""
        stub = agent_pb2_grpc.AgentServiceStub(self.channel(host))
        request = agent_pb2.ObserveInstanceRequest(instance_id=instance)
        try:
            answer = await stub.ObserveInstance(request, timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError as failure:
            raise meaning(host, failure) from failure
        return answer.observed

    async def read_console(self, host: HostId, instance: InstanceId, max_bytes: int) -> tuple[bytes, bool]:
        """The tail of the console, and whether there is more."""
        stub = agent_pb2_grpc.AgentServiceStub(self.channel(host))
        request = agent_pb2.ReadConsoleRequest(instance_id=instance, max_bytes=max_bytes)
        try:
            answer = await stub.ReadConsole(request, timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError as failure:
            raise meaning(host, failure) from failure
        return answer.output, answer.truncated

    async def survey(
        self, host: HostId, leader: LeaderRef, *, instance: InstanceId | None, digests: bool, seconds: float
    ) -> agent_pb2.SurveyResponse:
        """See the port."""
        stub = agent_pb2_grpc.AgentServiceStub(self.channel(host))
        request = agent_pb2.SurveyRequest(leader=leader, instance_id=instance or "", digests=digests)
        try:
            return await stub.Survey(request, timeout=seconds)
        except grpc.aio.AioRpcError as failure:
            raise meaning(host, failure) from failure

    async def sweep(
        self,
        host: HostId,
        leader: LeaderRef,
        targets: Sequence[agent_pb2.SweepTarget],
        *,
        principal: str,
    ) -> Sequence[agent_pb2.SweepReceipt]:
        """See the port. Raises HOST_UNREACHABLE: whatever was removed by then has its receipt there."""
        stub = agent_pb2_grpc.AgentServiceStub(self.channel(host))
        request = agent_pb2.SweepRequest(leader=leader, targets=targets, principal=principal)
        try:
            answer = await stub.Sweep(request, timeout=SWEEP_SECONDS)
        except grpc.aio.AioRpcError as failure:
            raise meaning(host, failure) from failure
        return answer.receipts

    async def offer_chunks(
        self,
        host: HostId,
        leader: LeaderRef,
        *,
        image: ImageId,
        manifest_digest: str,
        digests: Sequence[bytes],
        grant: SignedGrant,
    ) -> int:
        """See the port."""
        stub = agent_pb2_grpc.AgentServiceStub(self.channel(host))
        request = agent_pb2.OfferChunksRequest(
            leader=leader, image_id=image, manifest_digest=manifest_digest, digests=digests, grant=grant
        )
        try:
            answer = await stub.OfferChunks(request, timeout=OFFER_SECONDS)
        except grpc.aio.AioRpcError as failure:
            raise meaning(host, failure) from failure
        return answer.repaired

    async def run_step(
        self,
        host: HostId,
        request: agent_pb2.RunStepRequest,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> agent_pb2.StepOutput:
        """Starts or joins the step and waits for its end.

        Raises: HOST_UNREACHABLE when the stream was lost: the step may run on, call again to join it.
        Whatever the agent raised.
        """
        stub = agent_pb2_grpc.AgentServiceStub(self.channel(host))
        call = stub.RunStep(request)
        try:
            async for message in call:
                match message.WhichOneof("event"):
                    case "progress":
                        on_progress(message.progress)
                    case "done" if message.done.status.code == code_pb2.OK:
                        return message.done.output
                    case "done":
                        raise from_status(message.done.status)
        except grpc.aio.AioRpcError as failure:
            raise meaning(host, failure) from failure
        finally:
            call.cancel()
        raise _unreachable(host, "it ended the stream without an answer")

    async def migrate(
        self,
        host: HostId,
        start: migration_pb2.StartMigration,
        *,
        on_progress: Callable[[MigrationProgress], None],
        on_milestone: Callable[[MigrationMilestone], None],
        cancel: asyncio.Event,
        steering: Steering,
    ) -> migration_pb2.MigrationEnded:
        """Starts or joins the migration on its source and waits for libvirt's word.

        Raises: HOST_UNREACHABLE when the stream was lost: the migration may run on.
        What libvirt said, good or bad, is in the answer's status.
        """
        stub = migration_pb2_grpc.MigrationServiceStub(self.channel(host))
        call = stub.Migrate()
        first = FirstStatus(call)
        commands = asyncio.create_task(_command(call, start, cancel, steering))
        try:
            async for message in call:
                match message.WhichOneof("event"):
                    case "progress":
                        on_progress(message.progress)
                    case "milestone":
                        on_milestone(message.milestone)
                    case "result":
                        steering.answer(message.result)
                    case "ended":
                        return message.ended
        except grpc.aio.AioRpcError as failure:
            raise meaning(host, await first.real(failure)) from failure
        finally:
            # Its own failure says no more than the end of the stream does.
            commands.cancel()
            await asyncio.gather(commands, return_exceptions=True)
            call.cancel()
        raise _unreachable(host, "it ended the stream without an answer")

    def channel(self, host: HostId) -> grpc.aio.Channel:
        """Raises HOST_UNREACHABLE when its agent has never attached."""
        endpoint = self._endpoint_of(host)
        if not endpoint:
            raise _unreachable(host, "its agent has not attached")
        return self._channels.get(endpoint) or self._channels.setdefault(
            endpoint, self._open_channel(endpoint)
        )


async def _command(
    call: "grpc.aio.StreamStreamCall[migration_pb2.MigrateRequest, migration_pb2.MigrateResponse]",
    start: migration_pb2.StartMigration,
    cancel: asyncio.Event,
    steering: Steering,
) -> None:
    """A cancel that was asked before the call must not overtake the start."""
    await call.write(migration_pb2.MigrateRequest(start=start))
    turn = asyncio.Lock()

    async def pass_on_cancel() -> None:
        await cancel.wait()
        async with turn:
            await call.write(migration_pb2.MigrateRequest(cancel=migration_pb2.CancelMigration()))

    async def pass_on_commands() -> None:
        async with contextlib.aclosing(steering.commands()) as commands:
            async for command in commands:
                async with turn:
                    await call.write(_to_agent(command))

    async with asyncio.TaskGroup() as group:
        group.create_task(pass_on_cancel())
        group.create_task(pass_on_commands())


def _to_agent(command: ControlMigrationRequest) -> migration_pb2.MigrateRequest:
    """The same messages in another oneof: neither `attach` nor `cancel` is passed on so."""
    kind = command.WhichOneof("command")
    assert kind is not None
    order = migration_pb2.MigrateRequest(command_id=command.command_id)
    getattr(order, kind).CopyFrom(getattr(command, kind))
    # Some have no fields, and are there all the same.
    getattr(order, kind).SetInParent()
    return order


def meaning(host: HostId, failure: grpc.aio.AioRpcError) -> RemudaError:
    """See the module's docstring."""
    status = rpc_error_status(failure)
    error = from_status(status)
    if not _said_by_us(status) or error.reason in _TRANSPORT:
        return _unreachable(host, f"{failure.code().name}: {error.message}")
    return error


def _said_by_us(status: Status) -> bool:
    info = ErrorInfo()
    return any(detail.Unpack(info) and info.domain == DOMAIN for detail in status.details)


def _unreachable(host: HostId, detail: str) -> RemudaError:
    return RemudaError(
        Reason.HOST_UNREACHABLE,
        f"the agent of host {host} does not answer: {detail}",
        metadata={"host": f"hosts/{host}"},
        retry_after_seconds=1.0,
    )

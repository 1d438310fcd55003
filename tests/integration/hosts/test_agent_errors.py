"""What the scheduler makes of the ways in which a call to an agent can fail, over real gRPC."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from remuda.agent.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    migration_pb2,
    migration_pb2_grpc,
    probe_pb2,
    probe_pb2_grpc,
)
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, InstanceId, OperationId
from remuda_core.rpc.status import STATUS_KEY, to_status
from remuda_scheduler.hosts.agents import AgentClients
from remuda_scheduler.hosts.probes import HostProbes
from remuda_scheduler.live.control import ControlHub

HOST = HostId(str(uuid.uuid4()))
INSTANCE = InstanceId(str(uuid.uuid4()))
Fail = Callable[[Any], Awaitable[None]]


class BrokenAgent(
    agent_pb2_grpc.AgentServiceServicer,
    migration_pb2_grpc.MigrationServiceServicer,
    probe_pb2_grpc.ProbeServiceServicer,
):
    """Every rpc fails in the same way, streams after their first message."""

    def __init__(self, fail: Fail) -> None:
        self._fail = fail

    async def Fence(self, request: Any, context: Any) -> Any:
        await self._fail(context)

    async def ObserveInstance(self, request: Any, context: Any) -> Any:
        await self._fail(context)

    async def ReadConsole(self, request: Any, context: Any) -> Any:
        await self._fail(context)

    async def RunStep(self, request: Any, context: Any) -> AsyncIterator[agent_pb2.RunStepResponse]:
        yield agent_pb2.RunStepResponse(accepted=agent_pb2.StepAccepted())
        await self._fail(context)

    async def Migrate(self, requests: Any, context: Any) -> AsyncIterator[migration_pb2.MigrateResponse]:
        yield migration_pb2.MigrateResponse(accepted=migration_pb2.MigrationAccepted())
        await self._fail(context)

    async def Listen(self, request: Any, context: Any) -> AsyncIterator[probe_pb2.ListenResponse]:
        yield probe_pb2.ListenResponse(port=1)
        await self._fail(context)

    async def DescribeGuest(self, request: Any, context: Any) -> Any:
        await self._fail(context)

    Survey = Sweep = OfferChunks = DescribeGuest
    AssessGuest = ResolveHost = Connect = OpenLibvirt = DescribeGuest
    WriteNonce = ReadNonce = RemoveNonce = MeasureDirtyRate = DescribeGuest


def aborting(code: StatusCode, status: Status | None = None) -> Fail:
    async def fail(context: Any) -> None:
        trailers = ((STATUS_KEY, status.SerializeToString()),) if status is not None else ()
        await context.abort(code, "RST_STREAM with error code 2", trailers)

    return fail


async def breaking(_context: Any) -> None:
    raise ValueError("a bug without our interceptors")


@asynccontextmanager
async def clients(fail: Fail) -> AsyncIterator[AgentClients]:
    server = grpc.aio.server()
    agent = BrokenAgent(fail)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(agent, server)
    migration_pb2_grpc.add_MigrationServiceServicer_to_server(agent, server)
    probe_pb2_grpc.add_ProbeServiceServicer_to_server(agent, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    made = AgentClients(open_channel=grpc.aio.insecure_channel, endpoint_of=lambda _: f"127.0.0.1:{port}")
    try:
        yield made
    finally:
        await made.close()
        await server.stop(None)


async def listen(agents: AgentClients) -> None:
    async for _ in HostProbes(agents.channel).listen(HOST, probe_pb2.ListenRequest(), 5):
        pass


def probe(rpc: str, request: Message) -> Callable[[AgentClients], Awaitable[object]]:
    def call(agents: AgentClients) -> Awaitable[object]:
        found: Awaitable[object] = getattr(HostProbes(agents.channel), rpc)(HOST, request, 5)
        return found

    return call


CALLS: dict[str, Callable[[AgentClients], Awaitable[object]]] = {
    "fence": lambda agents: agents.fence(HOST, LeaderRef(epoch=1)),
    "observe": lambda agents: agents.observe(HOST, INSTANCE),
    "read_console": lambda agents: agents.read_console(HOST, INSTANCE, 1),
    "survey": lambda agents: agents.survey(
        HOST, LeaderRef(epoch=1), instance=INSTANCE, digests=False, seconds=5
    ),
    "sweep": lambda agents: agents.sweep(HOST, LeaderRef(epoch=1), [], principal="user/root"),
    "run_step": lambda agents: agents.run_step(HOST, agent_pb2.RunStepRequest()),
    "migrate": lambda agents: agents.migrate(
        HOST,
        migration_pb2.StartMigration(),
        on_progress=lambda _: None,
        on_milestone=lambda _: None,
        cancel=asyncio.Event(),
        steering=ControlHub().desk(OperationId("op")),
    ),
    "listen": listen,
    "describe_guest": probe("describe_guest", probe_pb2.DescribeGuestRequest()),
    "assess_guest": probe("assess_guest", probe_pb2.AssessGuestRequest()),
    "resolve_host": probe("resolve_host", probe_pb2.ResolveHostRequest()),
    "connect": probe("connect", probe_pb2.ConnectRequest()),
    "open_libvirt": probe("open_libvirt", probe_pb2.OpenLibvirtRequest()),
    "write_nonce": probe("write_nonce", probe_pb2.WriteNonceRequest()),
    "read_nonce": probe("read_nonce", probe_pb2.ReadNonceRequest()),
    "remove_nonce": probe("remove_nonce", probe_pb2.RemoveNonceRequest()),
    "measure_dirty_rate": probe("measure_dirty_rate", probe_pb2.MeasureDirtyRateRequest()),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@each_call
@pytest.mark.parametrize(
    "fail",
    [
        breaking,
        aborting(StatusCode.INTERNAL),
        aborting(StatusCode.UNKNOWN),
        aborting(StatusCode.UNAVAILABLE),
        aborting(StatusCode.PERMISSION_DENIED),
        aborting(StatusCode.INTERNAL, Status(code=13, message="a proxy's word")),
    ],
    ids=["broken", "INTERNAL", "UNKNOWN", "UNAVAILABLE", "PERMISSION_DENIED", "of another domain"],
)
async def test_what_the_agent_did_not_say_itself_leaves_the_outcome_unknown(
    call: Callable[[AgentClients], Awaitable[object]], fail: Fail
) -> None:
    """A stream that breaks with INTERNAL is no word of the agent's: its job may run on."""
    async with clients(fail) as agents:
        with pytest.raises(RemudaError) as failure:
            await call(agents)
    assert failure.value.reason is Reason.HOST_UNREACHABLE
    assert failure.value.metadata["host"] == f"hosts/{HOST}"


@each_call
@pytest.mark.parametrize("reason", [Reason.STALE_LEADER, Reason.INTERNAL, Reason.HYPERVISOR_ERROR])
async def test_an_error_with_our_details_is_the_agents_own_word(
    call: Callable[[AgentClients], Awaitable[object]], reason: Reason
) -> None:
    error = RemudaError(reason, "as the agent says")
    async with clients(aborting(error.code, to_status(error))) as agents:
        with pytest.raises(RemudaError) as failure:
            await call(agents)
    assert (failure.value.reason, failure.value.message) == (reason, "as the agent says")


@each_call
async def test_an_agent_that_shuts_down_is_not_heard_either(
    call: Callable[[AgentClients], Awaitable[object]],
) -> None:
    error = RemudaError(Reason.SHUTTING_DOWN, "the agent shuts down")
    async with clients(aborting(error.code, to_status(error))) as agents:
        with pytest.raises(RemudaError) as failure:
            await call(agents)
    assert failure.value.reason is Reason.HOST_UNREACHABLE

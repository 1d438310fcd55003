"""LiveService.ControlMigration: between the api and the saga that follows a migration."""

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from remuda.compute.v1.migration_pb2 import (
    AttachToMigration,
    CommandResult,
    ControlMigrationRequest,
    GiveUp,
    MigrationProgress,
    SetBandwidth,
)
from remuda.compute.v1.operation_pb2 import OperationMetadata, OperationStep, Progress
from remuda.scheduler.v1 import live_pb2 as pb
from remuda.scheduler.v1.live_pb2_grpc import LiveServiceStub
from remuda.store.v1.operation_pb2 import OperationRecord
from remuda_core.errors import Reason
from remuda_core.ids import OperationId
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.status import from_rpc_error, from_status
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.live.control import Desk
from remuda_scheduler.term import Term

from tests.integration.hosts.conftest import WAIT_SECONDS, Hosts, Scheduler

if TYPE_CHECKING:
    Call = grpc.aio.StreamStreamCall[pb.ControlMigrationRequest, pb.ControlMigrationResponse]

APPLIED, REFUSED = CommandResult.EFFECT_APPLIED, CommandResult.EFFECT_REFUSED


class Live:
    """A leader, and a client of it."""

    def __init__(self, hosts: Hosts, scheduler: Scheduler, term: Term, channel: grpc.aio.Channel) -> None:
        self.hosts, self.scheduler, self.term = hosts, scheduler, term
        self.stub = LiveServiceStub(channel)

    async def operation(
        self, *, action: str = "LiveMigrateInstance", done: bool = False, **metadata: Any
    ) -> OperationId:
        operation = OperationId(str(uuid.uuid4()))
        record = OperationRecord(
            id=operation,
            action=action,
            # Without a claim on it no engine begins.
            instance_id=str(uuid.uuid4()),
            done=done,
            metadata=OperationMetadata(action=action, **metadata),
        )
        key = self.hosts.keys.operation(operation)
        revision = await self.hosts.etcd.put(key, record.SerializeToString())
        await self.term.store.operations.wait_revision(revision, WAIT_SECONDS)
        return operation

    async def moving(self) -> OperationId:
        """In the step that has a job."""
        return await self.operation(state=OperationMetadata.STATE_RUNNING, phase="guest_moved")

    async def control(self, operation: str) -> "Call":
        call = self.stub.ControlMigration()
        await call.write(pb.ControlMigrationRequest(operation_id=operation))
        return call


@pytest_asyncio.fixture
async def live(hosts: Hosts) -> Any:
    scheduler = await hosts.scheduler()
    async with open_channel(scheduler.endpoint, None, insecure_identity="service/api") as channel:
        yield Live(hosts, scheduler, await scheduler.term(), channel)


def bandwidth(command_id: str) -> pb.ControlMigrationRequest:
    command = ControlMigrationRequest(command_id=command_id, set_bandwidth=SetBandwidth(mib_per_second=2))
    return pb.ControlMigrationRequest(command=command)


async def follow(desk: Desk) -> None:
    """As a saga does whose host obeys."""
    async for command in desk.commands():
        result = CommandResult(command_id=command.command_id, effect=APPLIED, observed="2.0 MiB/s")
        desk.answer(result)


async def answer(call: "Call") -> CommandResult:
    while True:
        response = await call.read()
        assert isinstance(response, pb.ControlMigrationResponse), "the stream ended"
        if response.event.HasField("result"):
            return response.event.result


async def ending(call: "Call") -> Reason:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call.read()
    return from_rpc_error(failure.value).reason


async def test_commands_are_answered_and_progress_is_told_until_the_operation_ends(live: Live) -> None:
    operation = await live.moving()
    call = await live.control(operation)
    await call.write(bandwidth("one"))
    desk = live.term.controls.desk(operation)
    following = asyncio.create_task(follow(desk))
    assert (await answer(call)).observed == "2.0 MiB/s"
    seen = MigrationProgress(phase=MigrationProgress.PHASE_MEMORY, iteration=2)
    live.term.hub.publish(operation, Progress(percent=40, migration=seen))
    told = await call.read()
    assert isinstance(told, pb.ControlMigrationResponse)
    assert told.event.progress == seen
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await call.write(bandwidth("two"))
    await wait_for(lambda: desk.unanswered == {"two"}, timeout=WAIT_SECONDS)
    live.term.controls.finish(operation)
    live.term.hub.finish(operation)
    refused = await answer(call)
    assert (refused.command_id, refused.effect) == ("two", REFUSED)
    assert refused.phase == MigrationProgress.PHASE_FINISHING
    assert await call.read() is grpc.aio.EOF


@pytest.mark.parametrize(
    ("metadata", "phase", "name"),
    [
        ({"phase": "capacity_reserved"}, MigrationProgress.PHASE_PREPARING, "PREPARING"),
        (
            # Another target is tried after the first was in vain.
            {
                "phase": "target_prepared",
                "steps": [OperationStep(name="guest_moved", state=OperationStep.STATE_UNDONE)],
            },
            MigrationProgress.PHASE_PREPARING,
            "PREPARING",
        ),
        (
            {"phase": "target_finished", "steps": [OperationStep(name="guest_moved")]},
            MigrationProgress.PHASE_FINISHING,
            "FINISHING",
        ),
        (
            {"phase": "guest_moved", "state": OperationMetadata.STATE_UNDOING},
            MigrationProgress.PHASE_FINISHING,
            "FINISHING",
        ),
    ],
)
async def test_a_command_outside_the_step_with_the_job_is_refused_with_the_phase(
    live: Live, metadata: dict[str, Any], phase: int, name: str
) -> None:
    call = await live.control(await live.operation(**metadata))
    await call.write(bandwidth("one"))
    refused = await answer(call)
    assert (refused.effect, refused.phase) == (REFUSED, phase)
    error = from_status(refused.error)
    assert (error.reason, error.metadata["phase"]) == (Reason.COMMAND_REFUSED, name)


async def test_another_command_under_an_id_in_use_does_not_get_the_first_ones_answer(live: Live) -> None:
    operation = await live.moving()
    call = await live.control(operation)
    await call.write(bandwidth("one"))
    desk = live.term.controls.desk(operation)
    await wait_for(lambda: desk.unanswered, timeout=WAIT_SECONDS)
    other = bandwidth("one")
    other.command.set_bandwidth.mib_per_second = 9
    await call.write(other)
    refused = await answer(call)
    assert (refused.effect, from_status(refused.error).reason) == (REFUSED, Reason.REQUEST_ID_REUSED)
    following = asyncio.create_task(follow(desk))
    assert (await answer(call)).effect == APPLIED
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_only_a_running_migration_is_steered(live: Live) -> None:
    assert await ending(await live.control(str(uuid.uuid4()))) is Reason.OPERATION_NOT_FOUND
    for other in ({"action": "StopInstance", "phase": "guest_off"}, {"done": True}):
        call = await live.control(await live.operation(**other))
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call.read()
        error = from_rpc_error(failure.value)
        assert error.reason is Reason.COMMAND_REFUSED
        assert error.metadata["phase"] == other.get("phase", "")


async def test_neither_attach_nor_cancel_is_for_the_scheduler(live: Live) -> None:
    assert await ending(await live.control("")) is Reason.INVALID_ARGUMENT
    for command in (
        ControlMigrationRequest(cancel=GiveUp()),
        ControlMigrationRequest(attach=AttachToMigration(name="projects/demo/instances/web/migrations/1")),
    ):
        call = await live.control(await live.moving())
        await call.write(pb.ControlMigrationRequest(command=command))
        assert await ending(call) is Reason.INVALID_ARGUMENT


async def test_a_leader_that_steps_down_answers_nothing_for_its_successor(live: Live) -> None:
    operation = await live.moving()
    call = await live.control(operation)
    await call.write(bandwidth("one"))
    await wait_for(lambda: live.term.controls.desk(operation).unanswered, timeout=WAIT_SECONDS)
    await live.scheduler.resign()
    assert await ending(call) in (Reason.NO_LEADER, Reason.NOT_LEADER)

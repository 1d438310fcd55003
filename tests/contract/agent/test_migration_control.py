"""Commands on the Migrate stream, as a leader sends them and hears of them: over gRPC, fake hypervisor."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest_asyncio
from remuda.agent.v1 import migration_pb2 as pb
from remuda.agent.v1.agent_pb2 import ObserveInstanceRequest
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.agent.v1.migration_pb2_grpc import MigrationServiceStub
from remuda.compute.v1.migration_pb2 import (
    CommandResult,
    MigrationProgress,
    PauseAndFinish,
    SetBandwidth,
    SetMaxDowntime,
)
from remuda_agent.hypervisor.fake import FakeFabric, FakeTimings
from remuda_core.errors import Reason
from remuda_core.rpc.status import from_status

from tests.contract.agent.test_agent_rpcs import (
    INSTANCE,
    Host,
    launch,
    migration,
    prepare_incoming,
    running_host,
)

if TYPE_CHECKING:
    Call = grpc.aio.StreamStreamCall[pb.MigrateRequest, pb.MigrateResponse]

PATIENCE = 60.0


class Stream:
    """One call of a leader, and what it has told."""

    def __init__(self, source: Host, start: pb.MigrateRequest) -> None:
        self.call: Call = MigrationServiceStub(source.channel).Migrate()
        self.start = start
        self.results: list[CommandResult] = []
        self.milestones: list[str] = []
        self.progress = MigrationProgress()
        self.ended: pb.MigrationEnded | None = None

    async def open(self) -> "Stream":
        await self.call.write(self.start)
        await self.next()
        return self

    async def send(self, request: pb.MigrateRequest) -> None:
        await self.call.write(request)

    async def next(self) -> None:
        message = await asyncio.wait_for(self.call.read(), PATIENCE)
        assert isinstance(message, pb.MigrateResponse), f"the stream ended after {self.results}"
        match message.WhichOneof("event"):
            case "result":
                self.results.append(message.result)
            case "milestone":
                self.milestones.append(message.milestone.type)
            case "progress":
                self.progress = message.progress
            case "ended":
                self.ended = message.ended

    async def memory(self) -> "Stream":
        while self.progress.phase != MigrationProgress.PHASE_MEMORY:
            await self.next()
        return self

    async def answers(self, count: int) -> list[CommandResult]:
        while len(self.results) < count:
            await self.next()
        return self.results

    async def end(self) -> pb.MigrationEnded:
        while self.ended is None:
            await self.next()
        return self.ended


@pytest_asyncio.fixture
async def fabric() -> AsyncIterator[FakeFabric]:
    fabric = FakeFabric(timings=FakeTimings(migrate_memory=float("inf"), enough_downtime_ms=900))
    async with fabric.awake():
        yield fabric


@pytest_asyncio.fixture
async def hosts(fabric: FakeFabric, tmp_path: Path) -> AsyncIterator[tuple[Host, Host]]:
    async with (
        running_host("b", fabric, tmp_path / "b") as target,
        running_host("a", fabric, tmp_path / "a") as source,
    ):
        await launch(source)
        await prepare_incoming(target)
        yield source, target


def order(source: Host, target: Host) -> pb.MigrateRequest:
    asked = migration(source, target)
    asked.start.policy.bandwidth_mib_s = 640
    asked.start.shared_disks = True
    return asked


def downtime(ms: int, name: str) -> pb.MigrateRequest:
    return pb.MigrateRequest(command_id=name, set_max_downtime=SetMaxDowntime(max_downtime_ms=ms))


async def test_every_command_is_answered_once_with_its_id_before_the_end(hosts: tuple[Host, Host]) -> None:
    stream = await (await Stream(hosts[0], order(*hosts)).open()).memory()
    await stream.send(pb.MigrateRequest(command_id="cap", set_bandwidth=SetBandwidth(mib_per_second=320)))
    await stream.send(downtime(120, "first"))
    await stream.send(downtime(120, "second"))
    await stream.send(pb.MigrateRequest(command_id="last", pause_and_finish=PauseAndFinish()))
    await stream.end()
    assert [one.command_id for one in stream.results] == ["cap", "first", "second", "last"]
    assert {one.effect for one in stream.results} == {CommandResult.EFFECT_APPLIED}
    assert stream.milestones.count("COMMAND_APPLIED") == 4
    assert "GUEST_PAUSED" in stream.milestones


async def test_a_lost_stream_loses_neither_command_nor_answer(hosts: tuple[Host, Host]) -> None:
    first = await (await Stream(hosts[0], order(*hosts)).open()).memory()
    command = pb.MigrateRequest(command_id="cap", set_bandwidth=SetBandwidth(mib_per_second=320))
    await first.send(command)
    await first.next()
    first.call.cancel()
    second = await Stream(hosts[0], order(*hosts)).open()
    await second.send(command)
    [result] = await second.answers(1)
    assert (result.command_id, result.effect) == ("cap", CommandResult.EFFECT_APPLIED)
    await second.send(downtime(1000, "end"))
    await second.end()
    assert second.milestones.count("COMMAND_APPLIED") == 2


async def test_two_streams_hear_of_the_same_command(hosts: tuple[Host, Host]) -> None:
    streams = [await (await Stream(hosts[0], order(*hosts)).open()).memory() for _ in range(2)]
    for stream in streams:
        await stream.send(downtime(120, "both"))
    results = [(await stream.answers(1))[0] for stream in streams]
    assert results[0] == results[1]
    await streams[0].send(downtime(1000, "end"))
    for stream in streams:
        await stream.end()


async def test_a_cancel_with_an_id_is_answered_and_one_without_is_not(hosts: tuple[Host, Host]) -> None:
    stream = await (await Stream(hosts[0], order(*hosts)).open()).memory()
    await stream.send(pb.MigrateRequest(command_id="stop", cancel=pb.CancelMigration()))
    await stream.send(pb.MigrateRequest(cancel=pb.CancelMigration()))
    ended = await stream.end()
    assert from_status(ended.status).reason is Reason.CANCELLED
    assert [(one.command_id, one.effect) for one in stream.results] == [
        ("stop", CommandResult.EFFECT_APPLIED)
    ]
    seen = await hosts[0].agent.ObserveInstance(ObserveInstanceRequest(instance_id=INSTANCE))
    assert seen.observed.instance_id == INSTANCE


async def test_a_deposed_leaders_stream_commands_nothing(hosts: tuple[Host, Host]) -> None:
    old = await (await Stream(hosts[0], order(*hosts)).open()).memory()
    newer = order(*hosts)
    newer.start.key.leader.CopyFrom(LeaderRef(cluster_id=newer.start.key.leader.cluster_id, epoch=99))
    new = await Stream(hosts[0], newer).open()
    await old.send(downtime(1000, "late"))
    [result] = await old.answers(1)
    assert result.effect == CommandResult.EFFECT_REFUSED
    assert from_status(result.error).reason is Reason.STALE_LEADER
    await new.send(downtime(1000, "end"))
    await new.end()

"""An agent as its leader sees it: over gRPC, on the fake hypervisor, every rpc of remuda.agent.v1."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
import pytest_asyncio
from remuda.agent.v1 import agent_pb2 as pb
from remuda.agent.v1 import migration_pb2 as mpb
from remuda.agent.v1.agent_pb2_grpc import AgentServiceStub
from remuda.agent.v1.common_pb2 import DomainSpec, LeaderRef, StepKey
from remuda.agent.v1.migration_pb2_grpc import MigrationServiceStub
from remuda.compute.v1.instance_pb2 import Instance
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor, FakeTimings
from remuda_agent.main import serve_host
from remuda_agent.settings import AgentSettings, PoolSettings
from remuda_core.errors import Reason
from remuda_core.ids import InstanceId
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.status import from_rpc_error, from_status
from remuda_core.testing.etcd import free_ports
from remuda_core.testing.waiting import wait_for

if TYPE_CHECKING:
    from remuda.agent.v1.agent_pb2_grpc import AgentServiceAsyncStub

OPERATION, INSTANCE = str(uuid.uuid4()), str(uuid.uuid4())
DO, UNDO = StepKey.DIRECTION_DO, StepKey.DIRECTION_UNDO
DIGEST = "ab" * 32


@dataclass(kw_only=True)
class Host:
    """One running agent."""

    name: str
    id: str
    channel: grpc.aio.Channel
    directory: Path

    @property
    def agent(self) -> "AgentServiceAsyncStub":
        return AgentServiceStub(self.channel)

    async def step(self, request: pb.RunStepRequest) -> tuple[list[pb.RunStepResponse], pb.StepDone]:
        messages = [message async for message in self.agent.RunStep(request)]
        return messages, messages[-1].done

    async def done(self, request: pb.RunStepRequest) -> pb.StepOutput:
        _, done = await self.step(request)
        if done.status.code:
            raise from_status(done.status)
        return done.output

    async def power(self) -> "Instance.PowerState.ValueType":
        answer = await self.agent.ObserveInstance(pb.ObserveInstanceRequest(instance_id=INSTANCE))
        return answer.observed.power_state

    @property
    def instance_directory(self) -> Path:
        return self.directory / "pool" / "instances" / INSTANCE


@asynccontextmanager
async def running_host(
    name: str, fabric: FakeFabric, directory: Path, *, boot_id: str = "boot-1", host_id: str = ""
) -> AsyncIterator[Host]:
    [port] = free_ports(1)
    (directory / "pool").mkdir(parents=True, exist_ok=True)
    (directory / "boot_id").write_text(f"{boot_id}\n")
    settings = AgentSettings(
        listen=f"127.0.0.1:{port}",
        name=name,
        host_uuid=host_id or str(uuid.uuid4()),
        schedulers=("127.0.0.1:1",),  # nobody: orders come all the same
        state_dir=directory / "state",
        hypervisor="fake",
        console_dir=directory / "consoles",
        boot_id_file=directory / "boot_id",
        pools=(PoolSettings(name="local", path=directory / "pool"),),
        bridges={"physnet": "br0"},
        drain_seconds=0.5,
    )
    stop = asyncio.Event()
    serving = asyncio.create_task(serve_host(settings, FakeHypervisor(fabric, name), stop))
    async with open_channel(settings.listen, None, insecure_identity="service/scheduler") as channel:
        await asyncio.wait_for(channel.channel_ready(), 60)
        yield Host(name=name, id=settings.host_uuid, channel=channel, directory=directory)
    stop.set()
    await serving


@pytest_asyncio.fixture
async def fabric() -> AsyncIterator[FakeFabric]:
    fabric = FakeFabric()
    async with fabric.awake():
        yield fabric


@pytest_asyncio.fixture
async def hosts(fabric: FakeFabric, tmp_path: Path) -> AsyncIterator[tuple[Host, Host]]:
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(running_host("a", fabric, tmp_path / "a"))
        target = await stack.enter_async_context(running_host("b", fabric, tmp_path / "b"))
        yield source, target


def key(
    step: str,
    direction: "StepKey.Direction.ValueType" = DO,
    *,
    leader: int = 5,
    epoch: int = 1,
) -> StepKey:
    return StepKey(
        operation_id=OPERATION,
        step=step,
        direction=direction,
        instance_id=INSTANCE,
        epoch=epoch,
        leader=LeaderRef(cluster_id=7, epoch=leader),
    )


def spec() -> DomainSpec:
    return DomainSpec(
        instance_id=INSTANCE,
        instance_name=f"projects/demo/instances/{INSTANCE}",
        hostname="guest",
        vcpus=1,
        memory_mib=128,
        pool="local",
        disk_bytes=1 << 30,
        image_id=str(uuid.uuid4()),
        manifest_digest=DIGEST,
    )


def base_image() -> pb.RunStepRequest:
    work = pb.EnsureBaseImage(image_id=str(uuid.uuid4()), manifest_digest=DIGEST, pool="local")
    return pb.RunStepRequest(key=key("base_image_present"), ensure_base_image=work)


def disks(direction: "StepKey.Direction.ValueType" = DO, **changes: int) -> pb.RunStepRequest:
    return pb.RunStepRequest(
        key=key("disks_prepared", direction, **changes), prepare_disks=pb.PrepareDisks(spec=spec())
    )


def define(direction: "StepKey.Direction.ValueType" = DO) -> pb.RunStepRequest:
    return pb.RunStepRequest(key=key("domain_defined", direction), define_domain=pb.DefineDomain(spec=spec()))


def start(direction: "StepKey.Direction.ValueType" = DO) -> pb.RunStepRequest:
    return pb.RunStepRequest(key=key("guest_started", direction), start_domain=pb.StartDomain())


async def launch(host: Host) -> None:
    for request in (base_image(), disks(), define(), start()):
        await host.done(request)


async def test_a_guest_is_made_step_by_step_and_every_step_may_be_repeated(
    hosts: tuple[Host, Host],
) -> None:
    host, _ = hosts
    await launch(host)
    await launch(host)
    assert await host.power() == Instance.POWER_STATE_RUNNING
    assert (host.instance_directory / "owner.json").exists()


async def test_undoing_every_step_twice_leaves_nothing(hosts: tuple[Host, Host]) -> None:
    host, _ = hosts
    await launch(host)
    for request in (start(UNDO), start(UNDO), define(UNDO), define(UNDO), disks(UNDO), disks(UNDO)):
        await host.done(request)
    assert await host.power() == Instance.POWER_STATE_ABSENT
    assert not host.instance_directory.exists()


async def test_a_step_that_fails_says_why_in_its_last_message(hosts: tuple[Host, Host]) -> None:
    host, _ = hosts
    _, done = await host.step(start())
    assert from_status(done.status).reason is Reason.HYPERVISOR_ERROR


async def test_an_acknowledged_leader_shuts_out_the_one_before(hosts: tuple[Host, Host]) -> None:
    host, _ = hosts
    answer = await host.agent.Fence(pb.FenceRequest(leader=LeaderRef(cluster_id=7, epoch=6)))
    assert answer.boot_id == "boot-1"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.step(disks(leader=5))
    assert from_rpc_error(refused.value).reason is Reason.STALE_LEADER
    with pytest.raises(grpc.aio.AioRpcError) as fenced:
        await host.agent.Fence(pb.FenceRequest(leader=LeaderRef(cluster_id=7, epoch=5)))
    assert from_rpc_error(fenced.value).reason is Reason.STALE_LEADER


async def test_an_order_for_an_older_copy_than_the_host_has_is_refused(hosts: tuple[Host, Host]) -> None:
    host, _ = hosts
    await launch(host)
    _, done = await host.step(disks(UNDO, epoch=0))
    assert from_status(done.status).reason is Reason.STALE_EPOCH
    assert await host.power() == Instance.POWER_STATE_RUNNING


async def test_the_console_is_read_from_its_end(hosts: tuple[Host, Host]) -> None:
    host, _ = hosts
    request = pb.ReadConsoleRequest(instance_id=INSTANCE, max_bytes=5)
    assert (await host.agent.ReadConsole(request)).output == b""
    (host.directory / "consoles").mkdir(exist_ok=True)
    (host.directory / "consoles" / f"{INSTANCE}.console").write_bytes(b"booting\nlogin")
    answer = await host.agent.ReadConsole(request)
    assert (answer.output, answer.truncated) == (b"login", True)


def migration(source: Host, target: Host) -> mpb.MigrateRequest:
    return mpb.MigrateRequest(
        start=mpb.StartMigration(
            key=key("guest_moved"),
            target_epoch=2,
            target=mpb.MigrationTarget(host_id=target.id, hostname=target.name, transport="tls"),
            policy=mpb.MigrationPolicy(max_downtime_ms=300),
            spec=spec(),
        )
    )


async def prepare_incoming(target: Host) -> None:
    work = pb.PrepareIncoming(spec=spec())
    await target.done(pb.RunStepRequest(key=key("target_prepared", epoch=2), prepare_incoming=work))


async def test_a_guest_moves_and_the_stream_tells_of_it(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    await launch(source)
    await prepare_incoming(target)
    call = MigrationServiceStub(source.channel).Migrate()
    await call.write(migration(source, target))
    messages = [message async for message in call]
    assert messages[0].HasField("accepted")
    assert not messages[0].accepted.joined
    assert messages[-1].ended.status.code == 0
    assert any(message.milestone.type == "JOB_STARTED" for message in messages)
    assert await target.power() == Instance.POWER_STATE_RUNNING
    assert await source.power() == Instance.POWER_STATE_SHUTOFF


async def test_a_migration_goes_on_without_its_stream_and_is_joined_and_cancelled(
    hosts: tuple[Host, Host], fabric: FakeFabric
) -> None:
    source, target = hosts
    fabric.timings = FakeTimings(migrate_memory=60.0)
    await launch(source)
    await prepare_incoming(target)
    first = MigrationServiceStub(source.channel).Migrate()
    await first.write(migration(source, target))
    accepted = await first.read()
    assert isinstance(accepted, mpb.MigrateResponse)
    first.cancel()
    second = MigrationServiceStub(source.channel).Migrate()
    await second.write(migration(source, target))
    joined = await second.read()
    assert isinstance(joined, mpb.MigrateResponse)
    assert joined.accepted.joined
    await second.write(mpb.MigrateRequest(cancel=mpb.CancelMigration()))
    message = joined
    while not message.HasField("ended"):
        answer = await second.read()
        assert isinstance(answer, mpb.MigrateResponse)
        message = answer
    assert from_status(message.ended.status).reason is Reason.CANCELLED
    assert await source.power() == Instance.POWER_STATE_RUNNING
    await wait_for(
        lambda: fabric.domain(target.name, InstanceId(INSTANCE)) is None,
        timeout=60,
        last_status=lambda: "a copy at the target",
    )


async def test_an_agent_that_starts_begins_no_migration_that_was_left_unfinished(
    fabric: FakeFabric, tmp_path: Path
) -> None:
    async with running_host("b", fabric, tmp_path / "b") as target:
        async with running_host("a", fabric, tmp_path / "a") as source:
            await launch(source)
            left = migration(source, target).start
        directory = tmp_path / "a" / "state" / "migrations"
        directory.mkdir(parents=True)
        (directory / f"{INSTANCE}.migration").write_bytes(left.SerializeToString())
        async with running_host("a", fabric, tmp_path / "a") as source:
            await asyncio.sleep(0.3)
            assert await source.power() == Instance.POWER_STATE_RUNNING
            assert await target.power() == Instance.POWER_STATE_ABSENT
            assert list(directory.iterdir()) == []


async def test_the_first_order_after_a_restart_finds_the_job_that_still_runs(
    fabric: FakeFabric, tmp_path: Path
) -> None:
    async with running_host("b", fabric, tmp_path / "b") as target:
        async with running_host("a", fabric, tmp_path / "a") as source:
            await launch(source)
            await prepare_incoming(target)
            fabric.timings = FakeTimings(migrate_memory=0.8)
            call = MigrationServiceStub(source.channel).Migrate()
            slow = migration(source, target)
            slow.start.policy.bandwidth_mib_s = 1
            slow.start.shared_disks = True
            await call.write(slow)
            await wait_for(lambda: FakeHypervisor(fabric, "a").job_stats(InstanceId(INSTANCE)), timeout=60)
        async with running_host("a", fabric, tmp_path / "a") as source:
            observed = await source.agent.ObserveInstance(pb.ObserveInstanceRequest(instance_id=INSTANCE))
            assert observed.observed.job == ObservedInstance.JOB_MIGRATION_OUT
            again = MigrationServiceStub(source.channel).Migrate()
            await again.write(slow)
            let_go = FakeHypervisor(fabric, "a").set_bandwidth
            await let_go(InstanceId(INSTANCE), mib_per_second=4000, post_copy=False)
            messages = [message async for message in again]
            assert messages[0].accepted.joined
            assert messages[-1].ended.status.code == 0
            assert await target.power() == Instance.POWER_STATE_RUNNING


async def test_a_host_without_the_base_offers_no_chunks_and_to_an_older_leader_none_at_all(
    hosts: tuple[Host, Host],
) -> None:
    host, _ = hosts
    request = pb.OfferChunksRequest(
        leader=LeaderRef(cluster_id=7, epoch=5),
        image_id=str(uuid.uuid4()),
        manifest_digest=DIGEST,
        digests=[bytes(32)],
        grant=SignedGrant(grant=b"grant"),
    )
    assert (await host.agent.OfferChunks(request)).repaired == 0
    await host.agent.Fence(pb.FenceRequest(leader=LeaderRef(cluster_id=7, epoch=6)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.agent.OfferChunks(request)
    assert from_rpc_error(refused.value).reason is Reason.STALE_LEADER


async def test_a_host_is_surveyed_and_swept_for_the_newest_leader_only(hosts: tuple[Host, Host]) -> None:
    host, _ = hosts
    await launch(host)
    leader = LeaderRef(cluster_id=7, epoch=5)
    found = await host.agent.Survey(pb.SurveyRequest(leader=leader, digests=True))
    assert [(one.instance_id, one.role, one.epoch) for one in found.directories] == [(INSTANCE, "owner", 1)]
    assert [one.power_state for one in found.domains] == [Instance.POWER_STATE_RUNNING]
    assert not any(file.digest for file in found.directories[0].files), "a guest runs on it"
    nobody = await host.agent.Survey(pb.SurveyRequest(leader=leader, instance_id=str(uuid.uuid4())))
    assert nobody == pb.SurveyResponse(time=nobody.time)
    targets = [pb.SweepTarget(domain=found.domains[0]), pb.SweepTarget(directory=found.directories[0])]
    swept = await host.agent.Sweep(pb.SweepRequest(leader=leader, targets=targets))
    assert [one.removed for one in swept.receipts] == [False, False]
    await host.done(start(UNDO))
    found = await host.agent.Survey(pb.SurveyRequest(leader=leader, instance_id=INSTANCE, digests=True))
    assert [len(file.digest) for file in found.directories[0].files if file.virtual_bytes] == [32]
    targets = [pb.SweepTarget(domain=found.domains[0]), pb.SweepTarget(directory=found.directories[0])]
    await host.agent.Fence(pb.FenceRequest(leader=LeaderRef(cluster_id=7, epoch=6)))
    for call in (
        host.agent.Sweep(pb.SweepRequest(leader=leader, targets=targets)),
        host.agent.Survey(pb.SurveyRequest(leader=leader)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert from_rpc_error(refused.value).reason is Reason.STALE_LEADER
    assert host.instance_directory.exists()
    leader = LeaderRef(cluster_id=7, epoch=6)
    swept = await host.agent.Sweep(pb.SweepRequest(leader=leader, targets=targets, principal="user/root"))
    assert [one.removed for one in swept.receipts] == [True, True]
    assert await host.power() == Instance.POWER_STATE_ABSENT
    assert not host.instance_directory.exists()
    assert "user/root" in (host.directory / "state" / "receipts.jsonl").read_text()

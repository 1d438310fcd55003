"""A leader and fake hosts in one process, over real gRPC and a real etcd."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from remuda.compute.v1.host_pb2 import Host, HostInventory
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.live_pb2_grpc import add_LiveServiceServicer_to_server
from remuda.scheduler.v1.registry_pb2 import AttachRequest, AttachResponse, Heartbeat, Hello, Observations
from remuda.scheduler.v1.registry_pb2_grpc import (
    HostRegistryServiceStub,
    add_HostRegistryServiceServicer_to_server,
)
from remuda.store.v1.host_pb2 import HostRecord, HostStatus
from remuda.store.v1.instance_pb2 import Claim, EventRecord, InstanceRecord, InstanceStatus
from remuda_agent.hypervisor import DomainDescription
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor
from remuda_agent.main import serve_host
from remuda_agent.settings import AgentSettings, PoolSettings
from remuda_core.auth.caller import Kind
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId, ProjectId
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.first_status import FirstStatus
from remuda_core.rpc.server import Service, ServiceServer
from remuda_core.telemetry.metrics import Metrics
from remuda_core.testing.etcd import free_ports
from remuda_core.testing.waiting import wait_for
from remuda_scheduler import gauges
from remuda_scheduler.engine.services import Timing
from remuda_scheduler.hosts.attach import HostRegistryService
from remuda_scheduler.leader import Leader, Parts
from remuda_scheduler.live.service import LiveService
from remuda_scheduler.signing import GrantSigner
from remuda_scheduler.term import Term

HEARTBEAT_MS = 100
UNREACHABLE_SECONDS = 1.0
DUPLICATE_SECONDS = 0.5
WAIT_SECONDS = 10.0
PROJECT = ProjectId("demo")


@dataclass(kw_only=True)
class Scheduler:
    """One candidate with its server."""

    name: str
    endpoint: str
    leader: Leader
    metrics: Metrics
    campaign: asyncio.Task[None] | None = None

    def run(self) -> None:
        self.campaign = asyncio.create_task(self.leader.run())

    async def resign(self) -> None:
        """Stops campaigning; its server goes on and answers as a standby."""
        if self.campaign is not None:
            self.campaign.cancel()
            await asyncio.gather(self.campaign, return_exceptions=True)

    async def term(self) -> Term:
        return await wait_for(lambda: self.leader.current, timeout=WAIT_SECONDS)

    def scrape(self) -> Metrics:
        gauges.show(self.metrics, self.leader.current)
        return self.metrics


@dataclass(kw_only=True)
class FakeAgent:
    """One agent; `hypervisor` is its host, which outlives it."""

    host: HostId
    name: str
    hypervisor: FakeHypervisor
    settings: AgentSettings
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(serve_host(self.settings, self.hypervisor, self.stop))

    async def end(self) -> None:
        self.stop.set()
        if self.task is not None:
            await self.task


@dataclass(kw_only=True)
class Hosts:
    """What a test builds its cluster from."""

    etcd: Etcd
    keys: Keys
    directory: Path
    stack: AsyncExitStack
    fabric: FakeFabric = field(default_factory=FakeFabric)
    schedulers: list[Scheduler] = field(default_factory=list)

    async def scheduler(self, *, run: bool = True, **changes: Any) -> Scheduler:
        """A candidate; the first one that runs leads. `changes` are fields of Parts."""
        name = f"scheduler-{len(self.schedulers) + 1}"
        endpoint = f"127.0.0.1:{free_ports(1)[0]}"
        metrics = Metrics()
        fields: dict[str, Any] = {
            "etcd": self.etcd,
            "keys": self.keys,
            "name": name,
            "endpoint": endpoint,
            "election_ttl_seconds": 2,
            "unreachable_after": UNREACHABLE_SECONDS,
            "duplicate_window": DUPLICATE_SECONDS,
            "timing": Timing(patience=0.5),
            "open_channel": lambda target: open_channel(target, None, insecure_identity="service/scheduler"),
            "grants": GrantSigner(Ed25519PrivateKey.generate(), valid_seconds=60.0),
            "sagas": {},
            "metrics": metrics,
            **changes,
        }
        leader = Leader(Parts(**fields))
        await self.stack.enter_async_context(
            ServiceServer(
                listen=endpoint,
                services=[
                    Service(
                        add_HostRegistryServiceServicer_to_server,
                        HostRegistryService(term=leader.term, heartbeat_interval_ms=HEARTBEAT_MS),
                    ),
                    Service(add_LiveServiceServicer_to_server, LiveService(term=leader.term)),
                ],
                tls=None,
                metrics=metrics,
                kinds={Kind.SERVICE, Kind.HOST, Kind.ANONYMOUS},
                drain_seconds=0.0,
            )
        )
        made = Scheduler(name=name, endpoint=endpoint, leader=leader, metrics=metrics)
        self.stack.push_async_callback(made.resign)
        self.schedulers.append(made)
        if run:
            made.run()
            await made.term()
        return made

    async def enrol(self, name: str, *, host: HostId | None = None) -> tuple[HostId, str]:
        """As CreateHost does. Returns the host and its token."""
        host, token = host or HostId(str(uuid.uuid4())), f"token of {name} {uuid.uuid4()}"
        record = HostRecord(
            id=host, display_name=name, enrolment_digest=hashlib.sha256(token.encode()).digest()
        )
        await self.etcd.put(self.keys.host(host), record.SerializeToString())
        # The leader reads hosts from its cache.
        for scheduler in self.schedulers:
            if scheduler.leader.current is not None:
                store = scheduler.leader.current.store
                await wait_for(lambda store=store: store.host(host) == record, timeout=WAIT_SECONDS)  # type: ignore[misc]
        return host, token

    async def delete_host(self, host: HostId) -> None:
        """As DeleteHost does."""
        await self.etcd.delete(self.keys.host(host))
        await self.etcd.delete(self.keys.host_status(host))

    async def agent(self, name: str, *, start: bool = True, **changes: Any) -> FakeAgent:
        """An enrolled host with an agent; `changes` are fields of AgentSettings."""
        host, token = await self.enrol(name)
        pool, console = self.directory / name / "pool", self.directory / name / "console"
        for path in (pool, console):
            path.mkdir(parents=True)
        fields: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "name": name,
            "host_uuid": host,
            "schedulers": tuple(scheduler.endpoint for scheduler in self.schedulers),
            "state_dir": self.directory / name / "state",
            "console_dir": console,
            "hypervisor": "fake",
            "enrolment_token": token,
            "pools": (PoolSettings(name="local", path=pool),),
            "bridges": {"physnet": "br0"},
            "drain_seconds": 0.0,
            **changes,
        }
        made = FakeAgent(
            host=host,
            name=name,
            hypervisor=FakeHypervisor(self.fabric, name),
            settings=AgentSettings(**fields),
        )
        self.stack.push_async_callback(made.end)
        if start:
            made.start()
            await self.until_state(host, "UP")
            # The state is stored before the session is open.
            await wait_for(lambda: self.attached(host), timeout=WAIT_SECONDS)
        return made

    def attached(self, host: HostId) -> bool:
        """Whether whoever leads has an open stream of this host."""
        terms = [scheduler.leader.current for scheduler in self.schedulers]
        return any(term is not None and term.registry.attached(host) for term in terms)

    async def status(self, host: HostId) -> HostStatus:
        kv = await self.etcd.get(self.keys.host_status(host))
        return HostStatus.FromString(kv.value) if kv else HostStatus()

    async def until_state(self, host: HostId, word: str) -> HostStatus:
        """What etcd holds once the stored state is this one."""

        async def reached() -> HostStatus | None:
            status = await self.status(host)
            return status if Host.State.Name(status.state) == f"STATE_{word}" else None

        return await wait_for(reached, timeout=WAIT_SECONDS)

    async def guest(
        self,
        agent: FakeAgent,
        state: "Instance.State.ValueType",
        *,
        epoch: int = 1,
        held_by: str = "",
    ) -> InstanceId:
        """An instance that lives on the agent's host, made as an operation makes it: record and status first,
        then the domain, then the claim goes (or is `held_by` another one).
        """
        instance = InstanceId(str(uuid.uuid4()))
        record = InstanceRecord(project=PROJECT, id=instance, display_name="web", vcpus=1, memory_mib=64)
        status = InstanceStatus(state=state, host_id=agent.host, epoch=epoch, pool="local", project=PROJECT)
        claim = Claim(operation_id=held_by or str(uuid.uuid4()), action="CreateInstance")
        await self.etcd.txn(
            success=[
                ops.put(self.keys.claim(instance), claim.SerializeToString()),
                ops.put(self.keys.instance(PROJECT, instance), record.SerializeToString()),
                ops.put(self.keys.instance_status(instance), status.SerializeToString()),
            ]
        )
        await agent.hypervisor.define(description(instance, epoch))
        await agent.hypervisor.start(instance)
        if not held_by:
            await self.etcd.delete(self.keys.claim(instance))
        return instance

    async def instance_status(self, instance: InstanceId) -> InstanceStatus:
        kv = await self.etcd.get(self.keys.instance_status(instance))
        assert kv is not None
        return InstanceStatus.FromString(kv.value)

    async def until_observed(
        self, instance: InstanceId, power: "Instance.PowerState.ValueType"
    ) -> InstanceStatus:
        async def reached() -> InstanceStatus | None:
            status = await self.instance_status(instance)
            return status if status.observed.power_state == power else None

        return await wait_for(reached, timeout=WAIT_SECONDS)

    async def events(self, instance: InstanceId) -> list[str]:
        page = await self.etcd.range_prefix(self.keys.events(instance))
        return [EventRecord.FromString(kv.value).event.type for kv in page.kvs]

    async def revision(self) -> int:
        """etcd's own, which every write raises."""
        return (await self.etcd.range_key(self.keys.leader)).revision

    @asynccontextmanager
    async def peer(self, scheduler: Scheduler, host: HostId) -> AsyncIterator["Peer"]:
        """A host's end of Attach, spoken by hand."""
        async with open_channel(scheduler.endpoint, None, insecure_identity=f"host/{host}") as channel:
            call = HostRegistryServiceStub(channel).Attach()
            try:
                yield Peer(call=call, host=host, first=FirstStatus(call))
            finally:
                call.cancel()


@dataclass(kw_only=True)
class Peer:
    """Says what a test wants said."""

    call: "grpc.aio.StreamStreamCall[AttachRequest, AttachResponse]"
    host: HostId
    first: FirstStatus

    async def hello(
        self, name: str, *, token: str = "", boot: str = "boot-1", **changes: Any
    ) -> AttachResponse:
        """The answer to it. Raises AioRpcError when it is refused."""
        fields: dict[str, Any] = {
            "host_id": self.host,
            "hostname": name,
            "boot_id": boot,
            "agent_endpoint": f"127.0.0.1:{1 if boot == 'boot-1' else 2}",
            "enrolment_token": token,
            "inventory": HostInventory(vcpus=4, memory_mib=1024),
            "observations": Observations(sequence=1, complete=True),
            **changes,
        }
        return await self._say(AttachRequest(hello=Hello(**fields)))

    async def beat(self, seq: int) -> AttachResponse:
        return await self._say(AttachRequest(heartbeat=Heartbeat(boot_id="boot-1", seq=seq)))

    async def _say(self, request: AttachRequest) -> AttachResponse:
        try:
            await self.call.write(request)
            return await self.read()
        except grpc.aio.AioRpcError as error:
            raise (await self.first.real(error)) from error

    async def read(self) -> AttachResponse:
        answer = await self.call.read()
        assert isinstance(answer, AttachResponse), "the stream ended"
        return answer


def description(instance: InstanceId, epoch: int) -> DomainDescription:
    return DomainDescription(
        instance_id=instance,
        title=instance,
        epoch=Epoch(epoch),
        operation_id=OperationId(str(uuid.uuid4())),
        vcpus=1,
        memory_mib=64,
        disk=Path("/disk"),
        config_drive=Path("/config"),
        console=Path("/console"),
    )


@pytest_asyncio.fixture
async def hosts(etcd: Etcd, etcd_prefix: str, tmp_path: Path) -> AsyncIterator[Hosts]:
    async with AsyncExitStack() as stack:
        yield Hosts(etcd=etcd, keys=Keys(etcd_prefix), directory=tmp_path, stack=stack)

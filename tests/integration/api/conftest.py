"""Gateways on a real etcd, callers of several kinds, and a leader that does what a test tells it to."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import pytest
import pytest_asyncio
from google.longrunning import operations_pb2 as lro
from google.longrunning.operations_pb2_grpc import OperationsStub
from google.protobuf.message import Message
from remuda.compute.v1 import (
    flavor_pb2,
    host_pb2,
    instance_pb2,
    moving_pb2,
    network_pb2,
    operation_pb2,
    reconcile_pb2,
)
from remuda.compute.v1.flavor_pb2_grpc import FlavorServiceStub
from remuda.compute.v1.host_pb2_grpc import HostServiceStub
from remuda.compute.v1.instance_pb2_grpc import InstanceServiceStub
from remuda.compute.v1.migration_pb2 import (
    CommandResult,
    ControlMigrationRequest,
    ControlMigrationResponse,
    MigrationProgress,
)
from remuda.compute.v1.migration_pb2_grpc import MigrationServiceStub
from remuda.compute.v1.network_pb2_grpc import NetworkServiceStub
from remuda.compute.v1.operation_pb2_grpc import OperationServiceStub
from remuda.compute.v1.quota_pb2_grpc import QuotaServiceStub
from remuda.image.v1 import image_pb2
from remuda.image.v1.image_pb2_grpc import ImageServiceStub
from remuda.scheduler.v1 import live_pb2
from remuda.scheduler.v1.live_pb2_grpc import LiveServiceServicer, add_LiveServiceServicer_to_server
from remuda.store.v1 import host_pb2 as host_records
from remuda.store.v1 import image_pb2 as image_records
from remuda.store.v1 import instance_pb2 as records
from remuda.store.v1 import operation_pb2 as operation_records
from remuda_api.main import Gateway, gateway
from remuda_api.settings import ApiSettings
from remuda_core.config import EtcdSettings
from remuda_core.errors import RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.ids import HostId, ImageId, InstanceId, OperationId, ProjectId
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.context import request_id
from remuda_core.rpc.server import Service, ServiceServer
from remuda_core.rpc.status import from_rpc_error, to_status
from remuda_core.telemetry.metrics import Metrics
from remuda_core.testing.etcd import EtcdServer

if TYPE_CHECKING:
    from google.longrunning.operations_pb2_grpc import OperationsAsyncStub
    from remuda.compute.v1.flavor_pb2_grpc import FlavorServiceAsyncStub
    from remuda.compute.v1.host_pb2_grpc import HostServiceAsyncStub
    from remuda.compute.v1.instance_pb2_grpc import InstanceServiceAsyncStub
    from remuda.compute.v1.migration_pb2_grpc import MigrationServiceAsyncStub
    from remuda.compute.v1.network_pb2_grpc import NetworkServiceAsyncStub
    from remuda.compute.v1.operation_pb2_grpc import OperationServiceAsyncStub
    from remuda.compute.v1.quota_pb2_grpc import QuotaServiceAsyncStub
    from remuda.image.v1.image_pb2_grpc import ImageServiceAsyncStub

GIB = 1 << 30
Metadata = operation_pb2.OperationMetadata
Instance = instance_pb2.Instance


@dataclass(kw_only=True)
class Client:
    """One caller at one gateway."""

    instances: "InstanceServiceAsyncStub"
    operations: "OperationsAsyncStub"
    watching: "OperationServiceAsyncStub"
    hosts: "HostServiceAsyncStub"
    flavors: "FlavorServiceAsyncStub"
    networks: "NetworkServiceAsyncStub"
    images: "ImageServiceAsyncStub"
    migrations: "MigrationServiceAsyncStub"
    quotas: "QuotaServiceAsyncStub"

    @classmethod
    def on(cls, channel: grpc.aio.Channel) -> "Client":
        return cls(
            instances=InstanceServiceStub(channel),
            operations=OperationsStub(channel),
            watching=OperationServiceStub(channel),
            hosts=HostServiceStub(channel),
            flavors=FlavorServiceStub(channel),
            networks=NetworkServiceStub(channel),
            images=ImageServiceStub(channel),
            migrations=MigrationServiceStub(channel),
            quotas=QuotaServiceStub(channel),
        )


def applied(command_id: str) -> ControlMigrationResponse:
    result = CommandResult(
        command_id=command_id,
        effect=CommandResult.EFFECT_APPLIED,
        phase=MigrationProgress.PHASE_MEMORY,
        observed="1.9 MiB/s seen",
    )
    return ControlMigrationResponse(result=result)


class Live(LiveServiceServicer):
    """What the leader answers; a test sets it."""

    def __init__(self) -> None:
        self.explained: list[Message] = []
        self.explanation = operation_pb2.PlacementExplanation(chosen_host="hosts/chosen", considered=3)
        self.progress: asyncio.Queue[operation_pb2.Progress | None] = asyncio.Queue()
        self.watched = 0
        self.request_ids: list[str] = []
        self.refusal: RemudaError | None = None
        self.checked: list[live_pb2.CheckMigrationRequest] = []
        self.check = moving_pb2.CheckMigrationResponse()
        self.planned: list[str] = []
        self.report = reconcile_pb2.ReconcileReport(intended="RUNNING")
        self.sweeps: list[live_pb2.SweepHostRequest] = []
        self.swept = host_pb2.SweepHostResponse()
        self.commands: list[ControlMigrationRequest] = []
        self.deaf = False
        """Commands arrive and are not answered."""
        self.control: asyncio.Queue[ControlMigrationResponse | RemudaError | None] = asyncio.Queue()
        """What the next control stream says besides its answers; None ends it."""

    async def WatchProgress(
        self, request: live_pb2.WatchProgressRequest, context: object
    ) -> AsyncIterator[live_pb2.WatchProgressResponse]:
        self.watched += 1
        self.request_ids.append(request_id())
        while (progress := await self.progress.get()) is not None:
            yield live_pb2.WatchProgressResponse(progress=progress)

    async def Explain(self, request: live_pb2.ExplainRequest, context: object) -> live_pb2.ExplainResponse:
        if self.refusal is not None:
            raise self.refusal
        self.explained.append(request)
        return live_pb2.ExplainResponse(explanation=self.explanation)

    async def CheckMigration(
        self, request: live_pb2.CheckMigrationRequest, context: object
    ) -> live_pb2.CheckMigrationResponse:
        if self.refusal is not None:
            raise self.refusal
        self.checked.append(request)
        return live_pb2.CheckMigrationResponse(response=self.check)

    async def PlanReconcile(
        self, request: live_pb2.PlanReconcileRequest, context: object
    ) -> live_pb2.PlanReconcileResponse:
        self.planned.append(request.instance_id)
        return live_pb2.PlanReconcileResponse(report=self.report)

    async def SweepHost(
        self, request: live_pb2.SweepHostRequest, context: object
    ) -> live_pb2.SweepHostResponse:
        if self.refusal is not None:
            raise self.refusal
        self.sweeps.append(request)
        return live_pb2.SweepHostResponse(response=self.swept)

    async def ControlMigration(
        self, request_iterator: AsyncIterator[live_pb2.ControlMigrationRequest], context: object
    ) -> AsyncIterator[live_pb2.ControlMigrationResponse]:
        first = await anext(request_iterator)
        assert first.operation_id

        async def listen() -> None:
            async for request in request_iterator:
                self.commands.append(request.command)
                if not self.deaf:
                    self.control.put_nowait(applied(request.command.command_id))

        listening = asyncio.create_task(listen())
        try:
            while (event := await self.control.get()) is not None:
                if isinstance(event, RemudaError):
                    raise event
                yield live_pb2.ControlMigrationResponse(event=event)
        finally:
            listening.cancel()

    async def ReadConsole(
        self, request: live_pb2.ReadConsoleRequest, context: object
    ) -> live_pb2.ReadConsoleResponse:
        return live_pb2.ReadConsoleResponse(
            output=f"console of {request.instance_id}".encode()[: request.max_bytes], truncated=True
        )


@dataclass(kw_only=True)
class Leader:
    """Ends operations as a scheduler would, one write at a time."""

    etcd: Etcd
    keys: Keys
    live: Live = field(default_factory=Live)

    async def lead(self, endpoint: str) -> None:
        record = operation_records.LeaderRecord(id="test", endpoint=endpoint)
        await self.etcd.put(self.keys.leader, record.SerializeToString())

    async def resign(self) -> None:
        await self.etcd.delete(self.keys.leader)

    async def record(self, name: str) -> operation_records.OperationRecord:
        kv = await self.etcd.get(self.keys.operation(OperationId(name.removeprefix("operations/"))))
        assert kv is not None, f"{name} is not in etcd"
        return operation_records.OperationRecord.FromString(kv.value)

    async def advance(self, name: str, phase: str) -> None:
        record = await self.record(name)
        record.metadata.state = Metadata.STATE_RUNNING
        record.metadata.phase = phase
        await self._put(record)

    async def finish(
        self,
        name: str,
        *,
        state: "instance_pb2.Instance.State.ValueType" = Instance.STATE_RUNNING,
        host: str = "",
        error: RemudaError | None = None,
        response: Message | None = None,
    ) -> None:
        """Ends the operation, sets the instance's state, releases its claim or hands it on."""
        record = await self.record(name)
        record.done = True
        record.metadata.state = Metadata.STATE_FAILED if error else Metadata.STATE_DONE
        if error is not None:
            record.error.CopyFrom(to_status(error))
        elif response is not None:
            record.response.Pack(response)
        instance = InstanceId(record.instance_id)
        status = await self.status(instance)
        status.state = state
        status.host_id = host or status.host_id
        claim_kv = await self.etcd.get(self.keys.claim(instance))
        assert claim_kv is not None
        claim = records.Claim.FromString(claim_kv.value)
        release = ops.delete(claim_kv.key)
        if claim.successor_id:
            heir = records.Claim(operation_id=claim.successor_id, action="DeleteInstance")
            release = ops.put(claim_kv.key, heir.SerializeToString())
        await self.etcd.txn(
            success=[
                ops.put(self.keys.operation(OperationId(record.id)), record.SerializeToString()),
                ops.put(self.keys.instance_status(instance), status.SerializeToString()),
                release,
                ops.delete(self.keys.cancel(OperationId(record.id))),
            ]
        )

    async def remove(self, name: str) -> None:
        """Ends a delete: nothing of the instance is left."""
        record = await self.record(name)
        record.done = True
        record.metadata.state = Metadata.STATE_DONE
        project, instance = ProjectId(record.project), InstanceId(record.instance_id)
        kv = await self.etcd.get(self.keys.instance(project, instance))
        assert kv is not None
        owned = records.InstanceRecord.FromString(kv.value)
        await self.etcd.txn(
            success=[
                ops.put(self.keys.operation(OperationId(record.id)), record.SerializeToString()),
                ops.delete(kv.key),
                ops.delete(self.keys.instance_name(project, owned.display_name)),
                ops.delete(self.keys.instance_status(instance)),
                ops.delete(self.keys.claim(instance)),
                ops.delete(self.keys.image_ref(ImageId(owned.image_id), instance)),
            ]
        )

    async def status(self, instance: InstanceId) -> records.InstanceStatus:
        kv = await self.etcd.get(self.keys.instance_status(instance))
        return records.InstanceStatus.FromString(kv.value) if kv else records.InstanceStatus()

    async def _put(self, record: operation_records.OperationRecord) -> None:
        await self.etcd.put(self.keys.operation(OperationId(record.id)), record.SerializeToString())


@dataclass(kw_only=True)
class Cluster:
    """etcd, gateways, a leader, and what instances are made from."""

    etcd: Etcd
    keys: Keys
    leader: Leader
    settings: ApiSettings
    stack: AsyncExitStack
    gateways: list[Gateway] = field(default_factory=list)

    async def start_gateway(self, **changes: object) -> Gateway:
        settings = ApiSettings(**{**dict(self.settings), **changes})
        found = await self.stack.enter_async_context(gateway(settings))
        self.gateways.append(found)
        return found

    def client(self, identity: str, *, at: int = 0) -> Client:
        """`identity` like `user/alice;project:demo`; `at`: which gateway."""
        target = f"127.0.0.1:{self.gateways[at].server.port}"
        channel = open_channel(target, None, insecure_identity=identity)
        self.stack.push_async_callback(channel.close)
        return Client.on(channel)

    async def add_image(self, *, project: str = "demo", name: str = "cirros", **changes: object) -> str:
        """ACTIVE, as if it had been uploaded; `changes` are fields of the image."""
        image = ImageId(str(uuid.uuid4()))
        record = image_records.ImageRecord(
            id=image,
            project=project,
            image=image_pb2.Image(
                display_name=name,
                state=image_pb2.Image.STATE_ACTIVE,
                virtual_bytes=GIB,
                manifest_digest="ab" * 32,
                min_memory_mib=32,
            ),
        )
        record.image.MergeFrom(image_pb2.Image(**changes))  # type: ignore[arg-type]
        await self.etcd.put(self.keys.image(image), record.SerializeToString())
        await self.etcd.put(self.keys.image_name(ProjectId(project), name), image.encode())
        return f"projects/{project}/images/{image}"

    async def add_host(self, name: str) -> str:
        host = HostId(str(uuid.uuid4()))
        record = host_records.HostRecord(id=host, display_name=name)
        await self.etcd.put(self.keys.host(host), record.SerializeToString())
        await self.etcd.put(self.keys.host_name(name), host.encode())
        return host

    async def keys_under(self, prefix: str = "") -> set[str]:
        """All keys of the cluster, shortened by its prefix."""
        page = await self.etcd.range_prefix(self.keys.prefix + prefix)
        return {kv.key.removeprefix(self.keys.prefix) for kv in page.kvs}


@pytest_asyncio.fixture
async def cluster(etcd: Etcd, etcd_server: EtcdServer, etcd_prefix: str) -> AsyncIterator[Cluster]:
    keys = Keys(etcd_prefix)
    leader = Leader(etcd=etcd, keys=keys)
    settings = ApiSettings(
        listen="127.0.0.1:0",
        etcd=EtcdSettings(endpoints=etcd_server.config().endpoints, prefix=etcd_prefix),
        drain_seconds=0.2,
    )
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            ServiceServer(
                listen="127.0.0.1:0",
                services=[Service(add_LiveServiceServicer_to_server, leader.live)],
                tls=None,
                metrics=Metrics(),
                drain_seconds=0,
            )
        )
        await leader.lead(f"127.0.0.1:{server.port}")
        found = Cluster(etcd=etcd, keys=keys, leader=leader, settings=settings, stack=stack)
        await found.start_gateway()
        yield found


@pytest.fixture
def admin(cluster: Cluster) -> Client:
    return cluster.client("user/root;admin")


@pytest.fixture
def alice(cluster: Cluster) -> Client:
    """A member of project demo."""
    return cluster.client("user/alice;project:demo")


@pytest.fixture
def bob(cluster: Cluster) -> Client:
    """A member of project other."""
    return cluster.client("user/bob;project:other")


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What an instance is made from."""

    flavor: str
    network: str
    image: str

    def instance(self, display_name: str, **changes: object) -> instance_pb2.Instance:
        fields: dict[str, object] = {
            "display_name": display_name,
            "flavor": self.flavor,
            "image": self.image,
            "network_interfaces": [instance_pb2.NetworkInterface(network=self.network)],
            **changes,
        }
        return instance_pb2.Instance(**fields)  # type: ignore[arg-type]

    def request(self, display_name: str, **changes: object) -> instance_pb2.CreateInstanceRequest:
        return instance_pb2.CreateInstanceRequest(
            parent="projects/demo", instance=self.instance(display_name, **changes)
        )


@pytest_asyncio.fixture
async def pieces(cluster: Cluster, admin: Client) -> Pieces:
    flavor = await admin.flavors.CreateFlavor(
        flavor_pb2.CreateFlavorRequest(
            flavor_id="small", flavor=flavor_pb2.Flavor(vcpus=1, memory_mib=64, disk_gib=2)
        )
    )
    network = await admin.networks.CreateNetwork(
        network_pb2.CreateNetworkRequest(
            network_id="net",
            network=network_pb2.Network(physical_network="physnet", cidr="10.78.0.0/24", gateway="10.78.0.1"),
        )
    )
    return Pieces(flavor=flavor.name, network=network.name, image=await cluster.add_image())


Launch = Callable[..., Awaitable[instance_pb2.Instance]]


@pytest.fixture
def launch(cluster: Cluster, alice: Client, pieces: Pieces) -> Launch:
    """Creates an instance as alice, and ends the operation as the leader."""

    async def launched(
        name: str,
        state: "instance_pb2.Instance.State.ValueType" = Instance.STATE_RUNNING,
        host: str = "",
    ) -> instance_pb2.Instance:
        call = alice.instances.CreateInstance(pieces.request(name))
        operation = await call
        uid = (await cluster.leader.record(operation.name)).instance_id
        await cluster.leader.finish(operation.name, state=state, host=host or str(uuid.uuid4()))
        revision = (await cluster.etcd.range_key(cluster.keys.leader)).revision
        return await alice.instances.GetInstance(
            instance_pb2.GetInstanceRequest(name=f"projects/demo/instances/{uid}"),
            metadata=(("remuda-min-revision", str(revision)),),
        )

    return launched


async def refusal(call: Awaitable[object]) -> RemudaError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def metadata_of(operation: lro.Operation) -> operation_pb2.OperationMetadata:
    found = operation_pb2.OperationMetadata()
    assert operation.metadata.Unpack(found)
    return found

"""A mesh for the session, whole again before every test, and empty of instances after it."""

import asyncio
import hashlib
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Generator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.longrunning import operations_pb2 as lro
from remuda.compute.v1 import (
    flavor_pb2,
    host_pb2,
    instance_pb2,
    migration_pb2,
    moving_pb2,
    network_pb2,
    operation_pb2,
)
from remuda.image.v1 import image_pb2
from remuda.store.v1.operation_pb2 import LeaderRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.ids import HostId
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.status import from_rpc_error, from_status
from remuda_core.testing.etcd import EtcdServer
from remuda_core.testing.waiting import wait_for

from tests.integration.api.conftest import Client
from tests.integration.mesh.processes import GUEST_MIB, HOST_NAMES, Mesh

Instance = instance_pb2.Instance
Metadata = operation_pb2.OperationMetadata
PROJECT = "projects/demo"
MIB = 1 << 20
IMAGE = random.Random(7).randbytes(5 * MIB)
OF_INSTANCES = (
    *("instances/", "instance_names/", "instance_status/", "claims/", "ports/", "macs/", "events/"),
    *("migrations/", "journals/", "cancels/", "debts/", "image_refs/"),
)
READY_SECONDS = 90.0
DONE_SECONDS = 60.0


@dataclass(kw_only=True)
class Cluster:
    """A mesh and its clients, for one test."""

    mesh: Mesh
    etcd: Etcd
    keys: Keys
    stack: AsyncExitStack
    admin: Client
    alice: Client
    watching: list[asyncio.Task[Any]] = field(default_factory=list)

    # --- what there is ---

    @property
    def image(self) -> str:
        return f"{PROJECT}/images/small"

    def host(self, name: str) -> str:
        """Resource name."""
        return f"hosts/{self.mesh.hosts[name].uuid}"

    def host_name(self, resource: str) -> str:
        uuids = {plan.uuid: name for name, plan in self.mesh.hosts.items()}
        return uuids[HostId(resource.removeprefix("hosts/"))]

    async def leader(self) -> str:
        """Name of the scheduler that leads, empty: none."""
        seen = await self.etcd.get(self.keys.leader)
        return LeaderRecord.FromString(seen.value).id if seen else ""

    async def until_leader(self, *, other_than: str = "") -> str:
        """A scheduler that leads and knows it: a killed one's key stands until its TTL is over."""

        async def led() -> str | None:
            found = await self.leader()
            if not found or found == other_than:
                return None
            metrics = await asyncio.to_thread(self.mesh.http, found, "/metrics")
            return found if "\nremuda_leader 1.0\n" in metrics else None

        return await wait_for(led, timeout=READY_SECONDS, last_status=self.mesh.log_tails)

    async def until_healthy(self) -> None:
        async def healthy() -> bool:
            asked = [asyncio.to_thread(self.mesh.http, name, "/healthz") for name in self.mesh.processes]
            return all(answer == "ok\n" for answer in await asyncio.gather(*asked))

        await wait_for(healthy, timeout=READY_SECONDS, last_status=self.mesh.log_tails)

    async def until_up(self, *names: str) -> None:
        async def all_up() -> bool:
            page = await self.admin.hosts.ListHosts(host_pb2.ListHostsRequest())
            up = {host.display_name for host in page.hosts if host.state == host_pb2.Host.STATE_UP}
            return up >= set(names or HOST_NAMES)

        await wait_for(
            all_up,
            timeout=READY_SECONDS,
            last_status=self.mesh.log_tails,
            ignoring=(grpc.aio.AioRpcError,),
        )

    # --- instances ---

    def instance(self, display_name: str, **changes: Any) -> instance_pb2.Instance:
        fields: dict[str, Any] = {
            "display_name": display_name,
            "flavor": "flavors/small",
            "image": self.image,
            "network_interfaces": [instance_pb2.NetworkInterface(network="networks/net")],
            **changes,
        }
        return Instance(**fields)

    async def create(self, display_name: str, *, host: str = "", **changes: Any) -> lro.Operation:
        request = instance_pb2.CreateInstanceRequest(
            parent=PROJECT,
            instance=self.instance(display_name, **changes),
            host=self.host(host) if host else "",
        )
        client = self.admin if host else self.alice
        return await client.instances.CreateInstance(request)

    async def launch(self, display_name: str, *, host: str = "", **changes: Any) -> instance_pb2.Instance:
        """RUNNING."""
        operation = await self.done(await self.create(display_name, host=host, **changes))
        made = Instance()
        assert operation.response.Unpack(made)
        return made

    async def get(self, name: str) -> instance_pb2.Instance:
        return await self.alice.instances.GetInstance(instance_pb2.GetInstanceRequest(name=name))

    async def until_instance(self, name: str, state: "Instance.State.ValueType") -> None:
        async def reached() -> bool:
            return (await self.get(name)).state == state

        await wait_for(reached, timeout=DONE_SECONDS)

    async def delete(self, name: str) -> None:
        await self.done(
            await self.alice.instances.DeleteInstance(instance_pb2.DeleteInstanceRequest(name=name))
        )

    async def migrate(self, name: str, target: str = "", **changes: Any) -> lro.Operation:
        request = moving_pb2.LiveMigrateInstanceRequest(
            name=name, target_host=self.host(target) if target else "", **changes
        )
        return await self.admin.instances.LiveMigrateInstance(request)

    async def events(self, name: str) -> list[str]:
        answer = await self.alice.instances.ListInstanceEvents(
            instance_pb2.ListInstanceEventsRequest(parent=name)
        )
        return [event.type for event in answer.events]

    # --- images ---

    async def delete_image(self, name: str) -> None:
        """Gone when it returns."""
        await self.alice.images.DeleteImage(image_pb2.DeleteImageRequest(name=name))

        async def gone() -> bool:
            try:
                await self.alice.images.GetImage(image_pb2.GetImageRequest(name=name))
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error).reason is Reason.IMAGE_NOT_FOUND
            return False

        await wait_for(gone, timeout=READY_SECONDS, last_status=self.mesh.log_tails)

    # --- operations ---

    async def ended(self, operation: lro.Operation, *, timeout: float = DONE_SECONDS) -> lro.Operation:
        """However it ended."""
        request = lro.WaitOperationRequest(name=operation.name)
        found = await self.alice.operations.WaitOperation(request, timeout=timeout)
        assert found.done, f"not done within {timeout} s: {metadata_of(found)}\n{self.mesh.log_tails()}"
        return found

    async def done(self, operation: lro.Operation, *, timeout: float = DONE_SECONDS) -> lro.Operation:
        """Raises RemudaError when it failed."""
        found = await self.ended(operation, timeout=timeout)
        if found.HasField("error"):
            raise from_status(found.error)
        return found

    async def failure(self, operation: lro.Operation) -> RemudaError:
        found = await self.ended(operation)
        assert found.HasField("error"), f"{operation.name} did not fail"
        return from_status(found.error)

    async def failure_or_refusal(self, call: "Awaitable[lro.Operation]") -> RemudaError:
        """Why it did not happen, whether admission or the leader said so."""
        try:
            return await self.failure(await call)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)

    async def cancel(self, name: str) -> None:
        await self.alice.operations.CancelOperation(lro.CancelOperationRequest(name=name))

    def watch(self, operation: lro.Operation) -> "Watched":
        """Follows it from now on; what it sees grows while the test goes on."""
        watched = Watched(name=operation.name)
        watched.task = asyncio.create_task(watched.follow(self.alice))
        self.watching.append(watched.task)
        return watched

    async def migration(self, operation: lro.Operation) -> migration_pb2.Migration:
        """The record of a migration that has ended."""
        found = await self.ended(operation)
        name = metadata_of(found).migration
        return await self.alice.migrations.GetMigration(migration_pb2.GetMigrationRequest(name=name))

    # --- what is left ---

    async def keys_left(self) -> set[str]:
        """Keys of the cluster that belong to instances, without those of operations that have ended."""
        page = await self.etcd.range_prefix(self.keys.prefix)
        names = (kv.key.removeprefix(self.keys.prefix) for kv in page.kvs)
        return {name for name in names if name.startswith(OF_INSTANCES)}

    async def delete_all(self) -> None:
        page = await self.alice.instances.ListInstances(instance_pb2.ListInstancesRequest(parent=PROJECT))
        await asyncio.gather(*(self.delete(instance.name) for instance in page.instances))


@dataclass(kw_only=True)
class Watched:
    """Everything that one WatchOperation has told."""

    name: str
    seen: list[lro.Operation] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None

    async def follow(self, client: Client) -> None:
        call = client.watching.WatchOperation(operation_pb2.WatchOperationRequest(name=self.name))
        async for answer in call:
            self.seen.append(answer.operation)

    @property
    def phases(self) -> list[str]:
        """As they came, without repetitions."""
        phases = [metadata_of(one).phase for one in self.seen]
        return [phase for index, phase in enumerate(phases) if index == 0 or phases[index - 1] != phase]

    @property
    def migrations(self) -> list[migration_pb2.MigrationProgress]:
        """Live progress that was told."""
        progress = (metadata_of(one).progress for one in self.seen)
        return [one.migration for one in progress if one.HasField("migration")]

    @property
    def percents(self) -> list[int]:
        return [
            metadata_of(one).progress.percent for one in self.seen if metadata_of(one).HasField("progress")
        ]

    async def until(self, count: int = 1, *, timeout: float = DONE_SECONDS) -> None:
        """So many migration progresses have come."""
        await wait_for(
            lambda: len(self.migrations) >= count,
            timeout=timeout,
            last_status=lambda: [metadata_of(one) for one in self.seen[-1:]],
        )

    async def end(self, *, timeout: float = DONE_SECONDS) -> lro.Operation:
        """The last message: the operation is done. The stream has ended by itself."""
        assert self.task is not None
        await asyncio.wait_for(self.task, timeout)
        assert self.seen[-1].done
        return self.seen[-1]


def metadata_of(operation: lro.Operation) -> operation_pb2.OperationMetadata:
    found = operation_pb2.OperationMetadata()
    assert operation.metadata.Unpack(found)
    return found


async def refusal(call: Any) -> RemudaError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def clients(mesh: Mesh, stack: AsyncExitStack) -> tuple[Client, Client]:
    """An admin, and a member of project demo."""

    def client(name: str, *roles: str) -> Client:
        identity = ";".join((f"user/{name}", *roles))
        channel = open_channel(mesh.endpoints["api"], mesh.user(name, *roles), insecure_identity=identity)
        stack.push_async_callback(channel.close)
        return Client.on(channel)

    return client("root", "admin", "project:demo"), client("alice", "project:demo")


async def populate(mesh: Mesh) -> None:
    """Hosts enrolled over the api, a flavor, a network, an image."""
    async with AsyncExitStack() as stack:
        admin, alice = await clients(mesh, stack)

        async def answers() -> bool:
            await admin.hosts.ListHosts(host_pb2.ListHostsRequest(), timeout=2.0)
            return True

        await wait_for(
            answers, timeout=READY_SECONDS, ignoring=(grpc.aio.AioRpcError,), last_status=mesh.log_tails
        )
        for name, plan in mesh.hosts.items():
            request = host_pb2.CreateHostRequest(
                host_id=plan.uuid, host=host_pb2.Host(display_name=name), request_id=str(uuid.uuid4())
            )
            mesh.plan_host(name, (await admin.hosts.CreateHost(request)).enrolment_token)
        mesh.start()
        await admin.flavors.CreateFlavor(
            flavor_pb2.CreateFlavorRequest(
                flavor_id="small", flavor=flavor_pb2.Flavor(vcpus=1, memory_mib=GUEST_MIB, disk_gib=1)
            )
        )
        await admin.flavors.CreateFlavor(
            flavor_pb2.CreateFlavorRequest(
                flavor_id="large", flavor=flavor_pb2.Flavor(vcpus=1, memory_mib=512, disk_gib=1)
            )
        )
        await admin.networks.CreateNetwork(
            network_pb2.CreateNetworkRequest(
                network_id="net",
                network=network_pb2.Network(
                    physical_network="physnet", cidr="10.78.0.0/24", gateway="10.78.0.1"
                ),
            )
        )
        await upload(alice, mesh, "small", IMAGE)


async def upload(alice: Client, mesh: Mesh, display_name: str, disk: bytes) -> image_pb2.Image:
    """ACTIVE."""
    image = image_pb2.Image(
        display_name=display_name,
        format=image_pb2.Image.FORMAT_RAW,
        file_bytes=len(disk),
        sha256=hashlib.sha256(disk).hexdigest(),
    )
    made = await alice.images.CreateImage(image_pb2.CreateImageRequest(parent=PROJECT, image=image))

    def frames() -> Iterator[image_pb2.UploadImageRequest]:
        for offset in range(0, len(disk), MIB):
            data = disk[offset : offset + MIB]
            yield image_pb2.UploadImageRequest(
                name=made.name, offset=offset, data=data, finish=offset + len(data) == len(disk)
            )

    await alice.images.UploadImage(frames())

    async def active() -> image_pb2.Image | None:
        found = await alice.images.GetImage(image_pb2.GetImageRequest(name=made.name))
        assert found.state != image_pb2.Image.STATE_FAILED, found.status_message
        return found if found.state == image_pb2.Image.STATE_ACTIVE else None

    return await wait_for(active, timeout=READY_SECONDS, last_status=mesh.log_tails)


@pytest.fixture(scope="session")
def mesh(etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One for the session: what a test breaks, `cluster` repairs."""
    made = Mesh(directory=tmp_path_factory.mktemp("mesh"), etcd=etcd_server, prefix=f"/mesh-{uuid.uuid4()}/")
    try:
        made.start()
        asyncio.run(populate(made))
        yield made
    finally:
        made.stop()


@pytest_asyncio.fixture
async def cluster(mesh: Mesh, etcd: Etcd, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    """The session's mesh, whole and without instances."""
    request.node.mesh = mesh
    async with AsyncExitStack() as stack:
        mesh.start()
        admin, alice = await clients(mesh, stack)
        found = Cluster(mesh=mesh, etcd=etcd, keys=Keys(mesh.prefix), stack=stack, admin=admin, alice=alice)
        await found.until_healthy()
        await found.until_leader()
        await found.until_up()
        yield found
        for task in found.watching:
            task.cancel()
        await asyncio.gather(*found.watching, return_exceptions=True)
        mesh.start()
        await found.until_up()
        await found.delete_all()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the services said last goes with the report of a test that failed."""
    report = yield
    mesh = getattr(item, "mesh", None)
    if report.failed and isinstance(mesh, Mesh):
        report.sections.append(("Logs of the mesh", mesh.log_tails()))
    return report

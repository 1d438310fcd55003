"""The same mesh where every channel is mutual TLS and every caller is who its certificate says."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import IPv4Address

import grpc
import pytest
import pytest_asyncio
from remuda.agent.v1 import agent_pb2
from remuda.agent.v1.agent_pb2_grpc import AgentServiceStub
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.compute.v1 import host_pb2, instance_pb2
from remuda.compute.v1.host_pb2_grpc import HostServiceStub
from remuda.compute.v1.instance_pb2_grpc import InstanceServiceStub
from remuda.scheduler.v1 import live_pb2
from remuda.scheduler.v1.live_pb2_grpc import LiveServiceStub
from remuda.scheduler.v1.registry_pb2 import AttachRequest, Hello
from remuda.scheduler.v1.registry_pb2_grpc import HostRegistryServiceStub
from remuda_core.errors import Reason
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.tls import Tls
from remuda_core.testing.etcd import EtcdServer
from remuda_lab.pki import Authority, Identity, host_identity, service_identity

from tests.integration.mesh.conftest import PROJECT, Cluster, Instance, clients, populate, refusal
from tests.integration.mesh.processes import Mesh

LOOPBACK = IPv4Address("127.0.0.1")


@pytest.fixture(scope="module")
def secured(etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Alone: two meshes at a time are too many for two cores."""
    directory = tmp_path_factory.mktemp("mtls")
    mesh = Mesh(
        directory=directory,
        etcd=etcd_server,
        prefix=f"/mesh-{uuid.uuid4()}/",
        authority=Authority.create(directory / "ca"),
    )
    try:
        mesh.start()
        asyncio.run(populate(mesh))
        yield mesh
    finally:
        mesh.stop()


@pytest_asyncio.fixture
async def cluster(secured: Mesh, etcd: Etcd, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    request.node.mesh = secured
    async with AsyncExitStack() as stack:
        admin, alice = await clients(secured, stack)
        found = Cluster(
            mesh=secured, etcd=etcd, keys=Keys(secured.prefix), stack=stack, admin=admin, alice=alice
        )
        await found.until_up()
        yield found
        await found.delete_all()


def tls_of(mesh: Mesh, identity: Identity) -> Tls:
    found = mesh.identity(replace(identity, common_name=f"{identity.common_name}-{uuid.uuid4().hex[:8]}"))
    assert found is not None
    return found


async def test_an_instance_is_launched_moved_and_deleted(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha")
    await cluster.done(await cluster.migrate(made.name, "gamma"))
    found = await cluster.get(made.name)
    assert (found.state, found.host) == (Instance.STATE_RUNNING, cluster.host("gamma"))
    await cluster.delete(made.name)
    assert await cluster.keys_left() == set()


async def test_a_client_without_a_certificate_or_with_a_foreign_one_gets_no_connection(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    authority = cluster.mesh.authority
    assert authority is not None
    ca = authority.certificate.read_bytes()
    foreign = Authority.create(tmp_path_factory.mktemp("foreign"))
    pair = foreign.issue(
        Identity(common_name="root", path="user/root", roles=("admin",)), foreign.directory / "root"
    )
    stranger = Tls(ca=ca, cert=pair.certificate.read_bytes(), key=pair.key.read_bytes())
    for tls in (Tls(ca=ca), stranger):
        async with open_channel(cluster.mesh.endpoints["api"], tls) as channel:
            call = HostServiceStub(channel).ListHosts(host_pb2.ListHostsRequest(), timeout=3.0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            )


async def test_a_host_may_attach_as_itself_only_and_call_nobody_else(cluster: Cluster) -> None:
    """A taken-over hypervisor has a valid certificate: what it may do with it is this."""
    mesh = cluster.mesh
    alpha, beta = mesh.hosts["alpha"], mesh.hosts["beta"]
    tls = tls_of(mesh, host_identity("alpha", alpha.uuid, LOOPBACK))
    leader = mesh.endpoints[await cluster.leader()]
    async with open_channel(leader, tls) as channel:
        attach = HostRegistryServiceStub(channel).Attach()
        hello = Hello(
            host_id=beta.uuid,
            hostname="beta",
            boot_id="stolen",
            agent_endpoint="127.0.0.1:1",
            inventory=host_pb2.HostInventory(),
        )
        await attach.write(AttachRequest(hello=hello))
        assert (await refusal(attach.read())).reason is Reason.PERMISSION_DENIED
        explain = LiveServiceStub(channel).ReadConsole(
            live_pb2.ReadConsoleRequest(instance_id=str(uuid.uuid4()), max_bytes=1)
        )
        assert (await refusal(explain)).reason is Reason.PERMISSION_DENIED
    async with open_channel(beta.endpoint, tls) as channel:
        fence = AgentServiceStub(channel).Fence(agent_pb2.FenceRequest(leader=LeaderRef(epoch=1 << 40)))
        assert (await refusal(fence)).reason is Reason.PERMISSION_DENIED
    async with open_channel(mesh.endpoints["api"], tls) as channel:
        listing = InstanceServiceStub(channel).ListInstances(
            instance_pb2.ListInstancesRequest(parent=PROJECT)
        )
        assert (await refusal(listing)).reason is Reason.PERMISSION_DENIED


async def test_only_the_scheduler_orders_agents(cluster: Cluster) -> None:
    mesh = cluster.mesh
    for identity in (
        service_identity("api", instance="api", addresses=[LOOPBACK]),
        service_identity("image-store", instance="image-store", addresses=[LOOPBACK]),
        Identity(common_name="root", path="user/root", roles=("admin",)),
    ):
        async with open_channel(mesh.hosts["alpha"].endpoint, tls_of(mesh, identity)) as channel:
            fence = AgentServiceStub(channel).Fence(agent_pb2.FenceRequest(leader=LeaderRef(epoch=1 << 40)))
            assert (await refusal(fence)).reason is Reason.PERMISSION_DENIED

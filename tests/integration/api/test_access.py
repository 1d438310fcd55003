"""Who may do what at the gateway, and what operators see of it."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import Awaitable
from pathlib import Path

import pytest
from remuda.compute.v1 import flavor_pb2, host_pb2, instance_pb2, moving_pb2
from remuda.image.v1 import image_pb2
from remuda_api.gauges import set_gauges
from remuda_api.settings import TargetGroup
from remuda_core.errors import Reason
from remuda_core.rpc.channel import open_channel

from tests.integration.api.conftest import Client, Cluster, Launch, Pieces, refusal

Instance = instance_pb2.Instance


async def test_members_of_another_project_may_do_nothing_with_an_instance(
    bob: Client, launch: Launch
) -> None:
    web = await launch("web")
    name = web.name
    calls: list[Awaitable[object]] = [
        bob.instances.GetInstance(instance_pb2.GetInstanceRequest(name=name)),
        bob.instances.ListInstances(instance_pb2.ListInstancesRequest(parent="projects/demo")),
        bob.instances.UpdateInstance(instance_pb2.UpdateInstanceRequest(instance=web)),
        bob.instances.DeleteInstance(instance_pb2.DeleteInstanceRequest(name=name)),
        bob.instances.StartInstance(instance_pb2.StartInstanceRequest(name=name)),
        bob.instances.StopInstance(instance_pb2.StopInstanceRequest(name=name)),
        bob.instances.LiveMigrateInstance(moving_pb2.LiveMigrateInstanceRequest(name=name)),
        bob.instances.ListAllowedActions(instance_pb2.ListAllowedActionsRequest(name=name)),
        bob.instances.GetConsoleOutput(instance_pb2.GetConsoleOutputRequest(name=name)),
    ]
    for call in calls:
        assert (await refusal(call)).reason is Reason.PERMISSION_DENIED


async def test_only_admins_make_flavors_see_hosts_and_name_a_host(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    flavor = flavor_pb2.CreateFlavorRequest(flavor_id="x", flavor=flavor_pb2.Flavor(vcpus=1, memory_mib=64))
    named = pieces.request("web")
    named.host = "hosts/node-a"
    for call in (
        alice.flavors.CreateFlavor(flavor),
        alice.hosts.ListHosts(host_pb2.ListHostsRequest()),
        alice.instances.CreateInstance(named),
    ):
        assert (await refusal(call)).reason is Reason.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        ("service/scheduler", Reason.PERMISSION_DENIED),
        (f"host/{uuid.uuid4()}", Reason.PERMISSION_DENIED),
        ("", Reason.UNAUTHENTICATED),
    ],
)
async def test_hosts_services_and_nobody_are_no_callers_of_the_gateway(
    cluster: Cluster, identity: str, reason: Reason
) -> None:
    client = cluster.client(identity)
    error = await refusal(client.flavors.ListFlavors(flavor_pb2.ListFlavorsRequest()))
    assert error.reason is reason


async def test_a_bearer_token_stands_for_its_user_until_it_is_taken_out_of_the_file(
    cluster: Cluster, tmp_path: Path
) -> None:
    digest = hashlib.sha256(b"letmein").hexdigest()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[[tokens]]\nsha256 = "{digest}"\nprincipal = "carol"\nprojects = ["demo"]\n')
    found = await cluster.start_gateway(tokens_file=tokens)
    async with open_channel(f"127.0.0.1:{found.server.port}", None) as channel:
        client = Client.on(channel)
        request = image_pb2.ListImagesRequest(parent="projects/demo")
        await client.images.ListImages(request, metadata=(("authorization", "Bearer letmein"),))
        call = client.images.ListImages(request, metadata=(("authorization", "Bearer wrong"),))
        assert (await refusal(call)).reason is Reason.UNAUTHENTICATED
        tokens.write_text("")
        call = client.images.ListImages(request, metadata=(("authorization", "Bearer letmein"),))
        assert (await refusal(call)).reason is Reason.UNAUTHENTICATED


async def test_allowed_actions_are_those_that_the_rpcs_would_admit(alice: Client, launch: Launch) -> None:
    web = await launch("web")

    async def actions() -> dict[str, str]:
        answer = await alice.instances.ListAllowedActions(
            instance_pb2.ListAllowedActionsRequest(name=web.name)
        )
        return {one.action: "" if one.allowed else one.refusal.details[0].type_url for one in answer.actions}

    found = await actions()
    assert list(found) == [
        "StartInstance",
        "StopInstance",
        "SnapshotInstance",
        "LiveMigrateInstance",
        "DeleteInstance",
        "ReconcileInstance",
    ]
    assert [action for action, refused in found.items() if refused] == ["ReconcileInstance"], "for admins"
    await alice.instances.StopInstance(instance_pb2.StopInstanceRequest(name=web.name))
    async with asyncio.timeout(5):
        while not (found := await actions())["StopInstance"]:
            await asyncio.sleep(0.01)
    assert [action for action, refused in found.items() if not refused] == ["DeleteInstance"]


async def test_the_console_is_read_through_the_leader(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    request = instance_pb2.GetConsoleOutputRequest(name=web.name, max_bytes=7)
    answer = await alice.instances.GetConsoleOutput(request)
    assert (answer.output, answer.truncated) == (b"console", True)
    await cluster.leader.resign()
    assert (await refusal(alice.instances.GetConsoleOutput(request))).reason is Reason.NO_LEADER


async def test_a_leader_that_died_is_no_leader_until_another_stands_in_etcd(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    key = await cluster.etcd.get(cluster.keys.leader)
    assert key is not None
    await cluster.leader.lead("127.0.0.1:1")
    await cluster.gateways[0].caches.leader.wait_revision((await cluster.etcd.range_key("x")).revision, 5)
    request = instance_pb2.GetConsoleOutputRequest(name=web.name)
    asking = asyncio.create_task(console(alice, request))
    await cluster.etcd.put(key.key, key.value)
    assert (await asking).output.startswith(b"console of")


async def console(
    client: Client, request: instance_pb2.GetConsoleOutputRequest
) -> instance_pb2.GetConsoleOutputResponse:
    return await client.instances.GetConsoleOutput(request)


async def test_metrics_count_instances_and_open_operations(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    host = await cluster.add_host("node-a")
    web = await launch("web", host=host)
    await alice.instances.StopInstance(instance_pb2.StopInstanceRequest(name=web.name))
    found = cluster.gateways[0]
    await found.caches.operations.wait_revision((await cluster.etcd.range_key("x")).revision, 5)
    await found.caches.hosts.wait_revision((await cluster.etcd.range_key("x")).revision, 5)
    (operation,) = [e.value for e in found.caches.operations.items() if not e.value.done]
    set_gauges(found.caches, found.metrics, now=operation.metadata.create_time.ToNanoseconds() / 1e9 + 7)
    value = found.metrics.value
    assert value("remuda_instances", {"host": "node-a", "state": "RUNNING"}) == 1
    assert value("remuda_operations", {"action": "StopInstance", "state": "PENDING"}) == 1
    assert value("remuda_operation_oldest_seconds") == pytest.approx(7)
    body = await http_get(found.metrics_port, "/metrics")
    assert "grpc_server_handled_total" in body
    assert 'remuda_cache_synced{prefix="' in body


async def test_prometheus_finds_its_targets_and_health_says_that_etcd_is_followed(cluster: Cluster) -> None:
    group = TargetGroup(targets=("10.77.0.1:9464",), labels={"service": "agent"})
    found = await cluster.start_gateway(sd_targets=(group,))
    body = await http_get(found.metrics_port, "/sd/targets")
    assert json.loads(body) == [{"targets": ["10.77.0.1:9464"], "labels": {"service": "agent"}}]
    async with asyncio.timeout(5):
        while await http_get(found.metrics_port, "/healthz") != "ok\n":
            await asyncio.sleep(0.02)


async def http_get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return answer.partition("\r\n\r\n")[2]

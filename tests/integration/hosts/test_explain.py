"""What the leader says of placement: to the api that asks, and to itself right after its election."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import any_pb2
from google.protobuf.message import Message
from remuda.compute.v1.flavor_pb2 import Flavor
from remuda.compute.v1.host_pb2 import ExplainPlacementRequest
from remuda.compute.v1.instance_pb2 import (
    CreateInstanceRequest,
    Instance,
    NetworkInterface,
    StopInstanceRequest,
)
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.network_pb2 import Network
from remuda.compute.v1.operation_pb2 import PlacementExplanation
from remuda.image.v1.image_pb2 import Image
from remuda.scheduler.v1 import live_pb2
from remuda.scheduler.v1.live_pb2_grpc import LiveServiceStub
from remuda.store.v1.host_pb2 import FlavorRecord, NetworkRecord
from remuda.store.v1.image_pb2 import ImageRecord
from remuda_core.errors import Reason
from remuda_core.ids import FlavorId, ImageId, NetworkId
from remuda_core.rpc.channel import open_channel
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.ports import NothingFits, PlacementRequest

from tests.integration.hosts.conftest import UNREACHABLE_SECONDS, WAIT_SECONDS, Hosts, Scheduler
from tests.integration.hosts.test_attach import refusal

SMALL = PlacementRequest(vcpus=1, memory_mib=64, disk_bytes=1 << 20)


@pytest_asyncio.fixture
async def scheduler(hosts: Hosts) -> AsyncIterator[Scheduler]:
    """Leads; there is a flavor, and a network that alpha and beta have and gamma lacks."""
    flavor = FlavorRecord(id="small", flavor=Flavor(vcpus=1, memory_mib=64, disk_gib=1))
    network = NetworkRecord(id="net", network=Network(physical_network="physnet", cidr="10.0.0.0/24"))
    await hosts.etcd.put(hosts.keys.flavor(FlavorId("small")), flavor.SerializeToString())
    await hosts.etcd.put(hosts.keys.network(NetworkId("net")), network.SerializeToString())
    yield await hosts.scheduler()


async def explain(scheduler: Scheduler, request: Message) -> PlacementExplanation:
    packed = any_pb2.Any()
    packed.Pack(request)
    async with open_channel(scheduler.endpoint, None, insecure_identity="service/api") as channel:
        answer = await LiveServiceStub(channel).Explain(live_pb2.ExplainRequest(request=packed))
        return answer.explanation


def launch(**changes: str) -> CreateInstanceRequest:
    return CreateInstanceRequest(
        instance=Instance(
            flavor=changes.get("flavor", "flavors/small"),
            pool=changes.get("pool", ""),
            image=changes.get("image", ""),
            network_interfaces=[NetworkInterface(network="networks/net")],
        ),
        host=changes.get("host", ""),
    )


async def test_a_launch_is_explained_host_by_host(hosts: Hosts, scheduler: Scheduler) -> None:
    await hosts.agent("alpha")
    beta = await hosts.agent("beta", reserved_memory_mib=1 << 30)
    gamma = await hosts.agent("gamma", bridges={})
    found = await explain(scheduler, launch())
    assert {one.display_name: one.filter for one in found.hosts} == {
        "alpha": "",
        "beta": "memory",
        "gamma": "networks",
    }
    assert found.chosen_host == found.hosts[0].host
    assert (found.considered, dict(found.rejections)) == (3, {"memory": 1, "networks": 1})
    for name in ("gamma", gamma.host):
        named = await explain(scheduler, launch(host=f"hosts/{name}"))
        assert named.chosen_host == ""
    assert (await explain(scheduler, launch(pool="nowhere"))).rejections["storage"] == 1
    by_operator = ExplainPlacementRequest(flavor="flavors/small", networks=["networks/net"])
    assert (await explain(scheduler, by_operator)).chosen_host == found.chosen_host
    assert beta.host != found.chosen_host


async def test_a_launch_goes_only_where_its_image_runs_and_fits(hosts: Hosts, scheduler: Scheduler) -> None:
    alpha = await hosts.agent("alpha")
    store = scheduler.leader.term().store

    async def explained(**properties: Any) -> PlacementExplanation:
        image = ImageId(str(uuid.uuid4()))
        record = ImageRecord(id=image, project="demo", image=Image(**properties))
        key = hosts.keys.image(image)
        await hosts.etcd.put(key, record.SerializeToString())
        await wait_for(lambda: store.images.get(key) is not None, timeout=WAIT_SECONDS)
        return await explain(scheduler, launch(image=f"projects/demo/images/{image}"))

    assert (await explained(architecture="x86_64")).chosen_host == f"hosts/{alpha.host}"
    foreign = await explained(architecture="s390x")
    assert foreign.chosen_host == ""
    assert foreign.hosts[0].reason == "architecture is x86_64, s390x is needed"
    assert dict((await explained(min_disk_gib=1 << 16)).rejections) == {"storage": 1}


async def test_a_move_is_explained_from_where_the_instance_is(hosts: Hosts, scheduler: Scheduler) -> None:
    alpha, beta = await hosts.agent("alpha"), await hosts.agent("beta")
    instance = await hosts.guest(alpha, Instance.STATE_RUNNING)
    name = f"projects/demo/instances/{instance}"
    await wait_for(lambda: len(scheduler.leader.term().store.instances) == 1, timeout=WAIT_SECONDS)
    found = await explain(scheduler, LiveMigrateInstanceRequest(name=name))
    assert found.chosen_host == f"hosts/{beta.host}"
    assert {one.display_name: one.filter for one in found.hosts} == {"beta": "", "alpha": "exclusion"}
    back = LiveMigrateInstanceRequest(name=name, target_host=f"hosts/{alpha.host}")
    assert (await explain(scheduler, back)).chosen_host == ""


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (StopInstanceRequest(), Reason.INVALID_ARGUMENT),
        (launch(flavor="flavors/none"), Reason.FLAVOR_NOT_FOUND),
        (launch(host="hosts/none"), Reason.HOST_NOT_FOUND),
        (
            LiveMigrateInstanceRequest(name="projects/demo/instances/6b0ff1d4-4f6b-4b41-9a7c-0b54a1f4d8f7"),
            Reason.INSTANCE_NOT_FOUND,
        ),
    ],
    ids=["no placement", "no flavor", "no host", "no instance"],
)
async def test_what_cannot_be_placed_is_refused(
    scheduler: Scheduler, request_: Message, reason: Reason
) -> None:
    assert (await refusal(explain(scheduler, request_))).reason is reason


async def test_a_standby_explains_nothing(hosts: Hosts, scheduler: Scheduler) -> None:
    standby = await hosts.scheduler(run=False)
    standby.run()

    async def redirected() -> bool:
        return (await refusal(explain(standby, launch()))).reason is Reason.NOT_LEADER

    await wait_for(redirected, timeout=WAIT_SECONDS)


async def test_a_new_leader_waits_for_hosts_it_has_not_heard_of(hosts: Hosts, scheduler: Scheduler) -> None:
    agent = await hosts.agent("alpha")
    await agent.end()
    await scheduler.resign()
    scheduler.run()
    placer = (await scheduler.term()).placer
    choosing = asyncio.create_task(placer.choose(SMALL))
    agent.start()
    assert (await choosing).host_id == agent.host


async def test_a_host_that_stays_away_is_not_waited_for_longer_than_the_limit(
    hosts: Hosts, scheduler: Scheduler
) -> None:
    agent = await hosts.agent("alpha")
    await agent.end()
    await scheduler.resign()
    scheduler.run()
    placer = (await scheduler.term()).placer
    async with asyncio.timeout(UNREACHABLE_SECONDS + 2.0):
        with pytest.raises(NothingFits) as none:
            await placer.choose(SMALL)
    (verdict,) = none.value.explanation.hosts
    assert (verdict.filter, verdict.reason) == ("availability", "the host is unreachable")

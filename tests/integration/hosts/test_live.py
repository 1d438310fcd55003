"""LiveService: what the api asks of the leader, and what a standby answers."""

import uuid

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from remuda.compute.v1.flavor_pb2 import Flavor
from remuda.compute.v1.host_pb2 import ExplainPlacementRequest
from remuda.compute.v1.operation_pb2 import Progress
from remuda.scheduler.v1 import live_pb2 as pb
from remuda.scheduler.v1.live_pb2_grpc import LiveServiceStub
from remuda.store.v1.host_pb2 import FlavorRecord
from remuda_core.errors import Reason
from remuda_core.ids import FlavorId, OperationId
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.status import from_rpc_error
from remuda_core.testing.waiting import wait_for

from tests.integration.hosts.conftest import WAIT_SECONDS, Hosts


async def flavor(hosts: Hosts, name: str, memory_mib: int) -> None:
    record = FlavorRecord(id=name, flavor=Flavor(vcpus=1, memory_mib=memory_mib, disk_gib=1))
    key = hosts.keys.flavor(FlavorId(name))
    await hosts.etcd.put(key, record.SerializeToString())
    store = (await hosts.schedulers[0].term()).store
    await wait_for(lambda: store.flavors.get(key), timeout=WAIT_SECONDS)


def explain(flavor_name: str) -> pb.ExplainRequest:
    packed = Any()
    packed.Pack(ExplainPlacementRequest(flavor=flavor_name))
    return pb.ExplainRequest(request=packed)


async def test_the_leader_explains_where_a_launch_would_go_and_why_not(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    agent = await hosts.agent("alpha")
    await flavor(hosts, "small", 64)
    await flavor(hosts, "huge", 1 << 24)
    async with open_channel(scheduler.endpoint, None, insecure_identity="service/api") as channel:
        live = LiveServiceStub(channel)
        fits = (await live.Explain(explain("flavors/small"))).explanation
        assert fits.chosen_host == f"hosts/{agent.host}"
        full = (await live.Explain(explain("flavors/huge"))).explanation
        assert full.chosen_host == ""
        assert dict(full.rejections) == {"memory": 1}
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await live.Explain(explain("flavors/none"))
        assert from_rpc_error(missing.value).reason is Reason.FLAVOR_NOT_FOUND


async def test_progress_is_relayed_until_the_operation_is_over(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    operation = OperationId(str(uuid.uuid4()))
    hub = (await scheduler.term()).hub
    hub.publish(operation, Progress(percent=10))
    async with open_channel(scheduler.endpoint, None, insecure_identity="service/api") as channel:
        call = LiveServiceStub(channel).WatchProgress(pb.WatchProgressRequest(operation_id=operation))
        first = await call.read()
        assert isinstance(first, pb.WatchProgressResponse)
        assert first.progress.percent == 10
        hub.publish(operation, Progress(percent=5))
        second = await call.read()
        assert isinstance(second, pb.WatchProgressResponse)
        assert second.progress.percent == 10, "percent never falls"
        hub.finish(operation)
        assert await call.read() is grpc.aio.EOF


async def test_a_standby_names_the_leader(hosts: Hosts) -> None:
    leader = await hosts.scheduler()
    standby = await hosts.scheduler(run=False)
    standby.run()
    async with open_channel(standby.endpoint, None, insecure_identity="service/api") as channel:

        async def named() -> str:
            try:
                await LiveServiceStub(channel).Explain(explain("flavors/small"))
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
                return error.metadata.get("endpoint", "") if error.reason is Reason.NOT_LEADER else ""
            return ""

        assert await wait_for(named, timeout=WAIT_SECONDS) == leader.endpoint

"""SweepHost and PlanReconcile over a real etcd and agents, asked as the api asks the leader."""

import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from remuda.compute.v1.host_pb2 import SweepHostResponse, SweepItem
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.reconcile_pb2 import Repair
from remuda.scheduler.v1 import live_pb2 as pb
from remuda.scheduler.v1.live_pb2_grpc import LiveServiceStub
from remuda.store.v1.host_pb2 import Debt
from remuda.store.v1.instance_pb2 import Claim
from remuda_core.errors import Reason
from remuda_core.ids import HostId, InstanceId, OperationId
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.status import from_rpc_error

from tests.integration.hosts.conftest import FakeAgent, Hosts, Scheduler, description

if TYPE_CHECKING:
    from remuda.scheduler.v1.live_pb2_grpc import LiveServiceAsyncStub

RUNNING = Instance.STATE_RUNNING
TWO_HOURS_AGO = time.time() - 7200


@asynccontextmanager
async def asking(scheduler: Scheduler) -> AsyncIterator["LiveServiceAsyncStub"]:
    async with open_channel(scheduler.endpoint, None, insecure_identity="service/api") as channel:
        yield LiveServiceStub(channel)


async def sweep(live: "LiveServiceAsyncStub", host: HostId, *, dry: bool = False) -> SweepHostResponse:
    request = pb.SweepHostRequest(host_id=host, validate_only=dry, principal="user/root")
    return (await live.SweepHost(request)).response


def pool_of(agent: FakeAgent) -> Path:
    return agent.settings.pools[0].path


def directory(
    agent: FakeAgent,
    instance: InstanceId,
    role: str,
    *,
    epoch: int,
    content: str = "what the guest wrote",
) -> Path:
    """An instance's directory with a disk, as a step or somebody's hand has left it."""
    made = pool_of(agent) / "instances" / instance
    made.mkdir()
    operation = str(uuid.uuid4())
    owner = {"instance": instance, "host": agent.host, "epoch": epoch, "operation": operation, "role": role}
    (made / "owner.json").write_text(json.dumps(owner))
    (made / "disk.qcow2").write_text(content)
    (made / "config.img").write_text("config")
    return made


def fates(response: SweepHostResponse) -> dict[str, str]:
    return {
        item.path: "removed" if item.removed else "removable" if item.removable else "stays"
        for item in response.items
    }


async def test_left_overs_are_listed_then_removed_and_what_is_needed_is_not_even_shown(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    alpha, beta = await hosts.agent("alpha"), await hosts.agent("beta")
    instance = await hosts.guest(alpha, RUNNING)
    needed = directory(alpha, instance, "owner", epoch=1)
    left = directory(beta, instance, "incoming", epoch=2)
    probe = pool_of(beta) / ".remuda-probe-1"
    probe.touch()
    os.utime(probe, (TWO_HOURS_AGO, TWO_HOURS_AGO))
    (pool_of(beta) / "instances" / "notes").mkdir()
    async with asking(scheduler) as live:
        assert fates(await sweep(live, alpha.host)) == {}
        expected = {f"local/instances/{instance}", "local/.remuda-probe-1"}
        listed = await sweep(live, beta.host, dry=True)
        assert fates(listed) == {**dict.fromkeys(expected, "removable"), "local/instances/notes": "stays"}
        assert left.exists()
        swept = await sweep(live, beta.host)
        assert fates(swept) == {**dict.fromkeys(expected, "removed"), "local/instances/notes": "stays"}
        assert fates(await sweep(live, beta.host)) == {"local/instances/notes": "stays"}
    assert not left.exists()
    assert not probe.exists()
    assert needed.exists()
    assert [item.kind for item in swept.items if item.instance_id] == [SweepItem.KIND_INSTANCE_DIRECTORY]
    receipts = (beta.settings.state_dir / "receipts.jsonl").read_text().splitlines()
    assert [json.loads(line)["outcome"] for line in receipts] == ["removing", "removed"] * 2
    assert {json.loads(line)["principal"] for line in receipts} == {"user/root"}


async def test_a_claim_or_a_debt_that_comes_before_the_sweep_keeps_everything_of_its_instance(
    hosts: Hosts,
) -> None:
    scheduler = await hosts.scheduler()
    alpha, beta = await hosts.agent("alpha"), await hosts.agent("beta")
    instance = await hosts.guest(alpha, RUNNING)
    directory(alpha, instance, "owner", epoch=1)
    left = directory(beta, instance, "incoming", epoch=2)
    claim = Claim(operation_id=str(uuid.uuid4()), action="LiveMigrateInstance")
    async with asking(scheduler) as live:
        await hosts.etcd.put(hosts.keys.claim(instance), claim.SerializeToString())
        (item,) = (await sweep(live, beta.host)).items
        assert (item.removable, claim.operation_id in item.reason) == (False, True)
        await hosts.etcd.delete(hosts.keys.claim(instance))
        debt = Debt(host_id=beta.host, instance_id=instance, step="target_prepared", operation_id="o")
        key = hosts.keys.debt(beta.host, OperationId("o"), "target_prepared")
        await hosts.etcd.put(key, debt.SerializeToString())
        (item,) = (await sweep(live, beta.host)).items
        assert item.reason.startswith("beta owes target_prepared")
        assert left.exists()
        await hosts.etcd.delete(key)
        assert fates(await sweep(live, beta.host)) == {f"local/instances/{instance}": "removed"}


@pytest.mark.parametrize(("content", "fate"), [("the same", "removed"), ("another", "stays")])
async def test_a_disk_that_was_left_behind_is_compared_with_the_one_on_record(
    hosts: Hosts, content: str, fate: str
) -> None:
    scheduler = await hosts.scheduler()
    alpha, beta = await hosts.agent("alpha"), await hosts.agent("beta")
    instance = await hosts.guest(alpha, Instance.STATE_STOPPED, epoch=2)
    directory(alpha, instance, "owner", epoch=2, content="the same")
    left = directory(beta, instance, "owner", epoch=1, content=content)
    async with asking(scheduler) as live:
        (item,) = (await sweep(live, beta.host)).items
        assert not item.removable
        assert "stop the instance" in item.reason, "a guest runs on the one on record"
        await alpha.hypervisor.destroy(instance)
        assert fates(await sweep(live, beta.host)) == {f"local/instances/{instance}": fate}
    assert left.exists() == (fate == "stays")


async def test_a_host_that_is_silent_or_unknown_is_not_swept_and_one_elsewhere_keeps_what_it_would_prove(
    hosts: Hosts,
) -> None:
    scheduler = await hosts.scheduler()
    alpha, beta = await hosts.agent("alpha"), await hosts.agent("beta")
    instance = await hosts.guest(alpha, RUNNING)
    directory(alpha, instance, "owner", epoch=1)
    directory(beta, instance, "incoming", epoch=2)
    await alpha.end()
    async with asking(scheduler) as live:
        (item,) = (await sweep(live, beta.host)).items
        assert not item.removable
        assert item.reason.startswith("alpha, which has the copy on record, does not answer")
        for host, reason in (
            (alpha.host, Reason.HOST_UNREACHABLE),
            (str(uuid.uuid4()), Reason.HOST_NOT_FOUND),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await sweep(live, HostId(host))
            assert from_rpc_error(refused.value).reason is reason


async def test_a_plan_tells_record_copies_and_repairs_and_touches_nothing(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    alpha, beta = await hosts.agent("alpha"), await hosts.agent("beta")
    gamma = await hosts.agent("gamma")
    instance = await hosts.guest(alpha, RUNNING)
    directory(alpha, instance, "owner", epoch=1)
    status = await hosts.instance_status(instance)
    await beta.hypervisor.define(description(instance, 1))
    await gamma.end()
    async with asking(scheduler) as live:
        report = (await live.PlanReconcile(pb.PlanReconcileRequest(instance_id=instance))).report
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await live.PlanReconcile(pb.PlanReconcileRequest(instance_id=str(uuid.uuid4())))
    assert from_rpc_error(missing.value).reason is Reason.INSTANCE_NOT_FOUND
    assert [(copy.host, copy.on_record) for copy in report.found] == [
        (f"hosts/{alpha.host}", True),
        (f"hosts/{beta.host}", False),
    ]
    assert list(report.silent_hosts) == [f"hosts/{gamma.host}"]
    assert [(one.action, one.host, one.done) for one in report.repairs][:1] == [
        (Repair.ACTION_REMOVE_STRAY, f"hosts/{beta.host}", False)
    ]
    assert await beta.hypervisor.view(instance) is not None
    assert (await hosts.instance_status(instance)).state == status.state

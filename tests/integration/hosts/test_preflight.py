"""CheckMigration by a real leader over real agents on fake hosts: each breach is seen in its own row."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.moving_pb2 import (
    CheckMigrationRequest,
    CheckMigrationResponse,
    MigrationCandidate,
    MigrationCheck,
)
from remuda.compute.v1.network_pb2 import Network
from remuda.scheduler.v1 import live_pb2
from remuda.scheduler.v1.live_pb2_grpc import LiveServiceStub
from remuda.store.v1.host_pb2 import NetworkRecord
from remuda.store.v1.instance_pb2 import InstanceRecord, InstanceStatus, Port
from remuda_agent.hypervisor import DomainDescription
from remuda_agent.settings import MigrationSettings, PoolSettings
from remuda_core.errors import Reason
from remuda_core.etcd import ops
from remuda_core.ids import Epoch, InstanceId, NetworkId, OperationId
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.status import from_rpc_error
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.preflight.conditions import CONDITIONS

from tests.integration.hosts.conftest import PROJECT, WAIT_SECONDS, FakeAgent, Hosts, Scheduler

GIB = 1 << 30
NAMES = {"alpha": "192.0.2.1", "beta": "192.0.2.2", "gamma": "192.0.2.3"}
FAIL, PASS, UNKNOWN = MigrationCheck.VERDICT_FAIL, MigrationCheck.VERDICT_PASS, MigrationCheck.VERDICT_UNKNOWN


class Preflight:
    """A guest on alpha; tests start the other hosts."""

    def __init__(self, hosts: Hosts, scheduler: Scheduler, alpha: FakeAgent, shared: Path) -> None:
        self.hosts, self.scheduler, self.alpha, self.shared = hosts, scheduler, alpha, shared
        self.instance = InstanceId("")

    async def agent(self, name: str, **changes: Any) -> FakeAgent:
        return await self.hosts.agent(name, **{"fake_hosts": NAMES, **changes})

    def shared_pool(self, directory: Path) -> PoolSettings:
        directory.mkdir(parents=True, exist_ok=True)
        return PoolSettings(name="shared", path=directory, shared=True)

    async def launch(self, *, pool: str = "local", config: str = "config.img") -> None:
        """A guest with its files in its own directory, as the agent makes them."""
        self.instance = InstanceId(str(uuid.uuid4()))
        (settings,) = [one for one in self.alpha.settings.pools if one.name == pool]
        directory = settings.path / "instances" / self.instance
        directory.mkdir(parents=True)
        for name in ("disk.qcow2", config):
            (directory / name).touch()
        record = InstanceRecord(
            project=PROJECT, id=self.instance, display_name="web", vcpus=1, memory_mib=64, disk_bytes=1 << 20
        )
        status = InstanceStatus(
            state=Instance.STATE_RUNNING,
            host_id=self.alpha.host,
            epoch=1,
            pool=pool,
            project=PROJECT,
            ports=[Port(network="net")],
        )
        store = (await self.scheduler.term()).store
        description = DomainDescription(
            instance_id=self.instance,
            title="web",
            epoch=Epoch(1),
            operation_id=OperationId(str(uuid.uuid4())),
            vcpus=1,
            memory_mib=64,
            disk=directory / "disk.qcow2",
            config_drive=directory / config,
            console=Path("/console"),
        )
        await self.alpha.hypervisor.define(description)
        await self.alpha.hypervisor.start(self.instance)
        keys = self.hosts.keys
        written = await self.hosts.etcd.txn(
            success=[
                ops.put(keys.instance(PROJECT, self.instance), record.SerializeToString()),
                ops.put(keys.instance_status(self.instance), status.SerializeToString()),
            ]
        )
        for cache in (store.instances, store.statuses):
            await cache.wait_revision(written.revision, WAIT_SECONDS)

    async def check(self, **fields: Any) -> CheckMigrationResponse:
        request = live_pb2.CheckMigrationRequest(
            instance_id=self.instance,
            request=CheckMigrationRequest(name="projects/demo/instances/web", **fields),
        )
        endpoint = self.scheduler.endpoint
        async with open_channel(endpoint, None, insecure_identity="service/api") as channel:
            return (await LiveServiceStub(channel).CheckMigration(request, timeout=30)).response

    async def only(self, target: FakeAgent, **fields: Any) -> MigrationCandidate:
        (candidate,) = (await self.check(target_host=f"hosts/{target.host}", **fields)).candidates
        assert [check.condition for check in candidate.checks] == list(CONDITIONS)
        return candidate


def rows(
    candidate: MigrationCandidate, *verdicts: MigrationCheck.Verdict.ValueType
) -> dict[str, MigrationCheck]:
    return {
        MigrationCheck.Condition.Name(check.condition).removeprefix("CONDITION_"): check
        for check in candidate.checks
        if check.verdict in (verdicts or (FAIL, UNKNOWN))
    }


@pytest_asyncio.fixture
async def preflight(hosts: Hosts, tmp_path: Path) -> AsyncIterator[Preflight]:
    scheduler = await hosts.scheduler()
    network = NetworkRecord(id="net", network=Network(physical_network="physnet", cidr="10.0.0.0/24"))
    await hosts.etcd.put(hosts.keys.network(NetworkId("net")), network.SerializeToString())
    term = await scheduler.term()
    await wait_for(
        lambda: term.store.networks.get(hosts.keys.network(NetworkId("net"))), timeout=WAIT_SECONDS
    )
    shared = tmp_path / "nfs"
    shared.mkdir()
    local = tmp_path / "alpha-local"
    local.mkdir()
    pools = (PoolSettings(name="local", path=local), PoolSettings(name="shared", path=shared, shared=True))
    alpha = await hosts.agent("alpha", fake_hosts=NAMES, pools=pools)
    yield Preflight(hosts, scheduler, alpha, shared)


def left(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob(".remuda-probe-*")]


async def test_a_move_between_hosts_that_fit_passes_every_condition(preflight: Preflight) -> None:
    beta = await preflight.agent("beta")
    await preflight.launch()
    candidate = await preflight.only(beta)
    assert rows(candidate) == {}
    assert candidate.probed
    assert candidate.kind == Migration.KIND_LIVE_BLOCK
    assert candidate.HasField("expected_duration"), "the dirty rate was measured"
    passed = rows(candidate, PASS)
    assert passed["MIGRATION_TRANSPORT"].duration_ms >= 0
    assert "connected to 127.0.0.1 port" in passed["MIGRATION_TRANSPORT"].observed_source
    assert passed["LIBVIRT_LISTENING"].observed_target == "said to be beta"


async def test_shared_disks_are_proven_by_a_file_that_is_gone_afterwards(preflight: Preflight) -> None:
    pools = (preflight.shared_pool(preflight.shared),)
    beta = await preflight.agent("beta", pools=pools)
    await preflight.launch(pool="shared")
    candidate = await preflight.only(beta)
    assert rows(candidate) == {}
    assert candidate.kind == Migration.KIND_LIVE_SHARED
    assert left(preflight.shared) == []


async def test_a_pool_that_only_claims_to_be_the_same_is_seen_through(
    preflight: Preflight, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    pools = (preflight.shared_pool(copy),)
    for path in preflight.shared.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    beta = await preflight.agent("beta", pools=pools)
    await preflight.launch(pool="shared")
    refused = rows(await preflight.only(beta))
    assert list(refused) == ["STORAGE"]
    assert refused["STORAGE"].verdict == FAIL
    assert "was not seen at the source" in refused["STORAGE"].observed_target
    assert left(copy) == left(preflight.shared) == []


BREACHES: dict[str, dict[str, Any]] = {
    "HOSTNAME_RESOLUTION": {"fake_hosts": {**NAMES, "alpha": "127.0.1.1"}},
    "NETWORK": {"bridges": {"other": "br0"}},
    "CAPACITY": {"reserved_memory_mib": 1 << 30},
    "MIGRATION_TRANSPORT": {"migration": MigrationSettings(transport="tcp")},
}


@pytest.mark.parametrize("condition", BREACHES)
async def test_what_is_wrong_on_a_host_is_seen_in_its_own_row_alone(
    preflight: Preflight, condition: str
) -> None:
    beta = await preflight.agent("beta", **BREACHES[condition])
    await preflight.launch()
    refused = rows(await preflight.only(beta))
    assert list(refused) == [condition]
    assert refused[condition].verdict == FAIL
    assert refused[condition].fix


async def test_a_cpu_that_lacks_features_and_a_libvirt_that_refuses_are_seen(preflight: Preflight) -> None:
    beta = await preflight.agent("beta")
    await preflight.launch()
    with preflight.hosts.fabric.transaction() as world:
        world.host("beta").cpu_missing_features = ["avx2"]
        world.host("beta").libvirt_listens = False
    refused = rows(await preflight.only(beta))
    assert list(refused) == ["CPU_COMPATIBLE", "LIBVIRT_LISTENING"]
    assert "avx2" in refused["CPU_COMPATIBLE"].observed_target
    assert "Connection refused" in refused["LIBVIRT_LISTENING"].observed_source


async def test_an_iso_config_drive_on_a_local_disk_is_refused(preflight: Preflight) -> None:
    beta = await preflight.agent("beta")
    await preflight.launch(config="config.iso")
    refused = rows(await preflight.only(beta))
    assert list(refused) == ["CONFIG_DRIVE"]
    assert "cdrom on sata" in refused["CONFIG_DRIVE"].observed_source


async def test_a_host_that_went_silent_gives_rows_that_are_unknown(preflight: Preflight) -> None:
    beta = await preflight.agent("beta")
    await preflight.launch()
    await beta.end()
    refused = rows(await preflight.only(beta), UNKNOWN)
    assert {"CPU_COMPATIBLE", "LIBVIRT_VERSION", "HOSTNAME_RESOLUTION", "STORAGE", "NETWORK"} <= set(refused)
    assert "HOST_UNREACHABLE: the agent of host beta does not answer" in refused["STORAGE"].observed_target


async def test_all_hosts_are_shown_the_best_are_probed_and_every_reason_is_kept(preflight: Preflight) -> None:
    await preflight.agent("beta", bridges={"other": "br0"})
    await preflight.agent("gamma")
    await preflight.launch()
    answer = await preflight.check()
    assert answer.source_host == f"hosts/{preflight.alpha.host}"
    assert [(one.display_name, one.probed, one.verdict) for one in answer.candidates] == [
        ("gamma", True, PASS),
        ("beta", False, FAIL),
    ]
    assert list(rows(answer.candidates[1])) == ["NETWORK"], "known without a probe"


async def test_no_more_hosts_are_probed_than_asked(preflight: Preflight) -> None:
    await preflight.agent("beta")
    await preflight.agent("gamma")
    await preflight.launch()
    assert [one.probed for one in (await preflight.check(probe_limit=1)).candidates] == [True, False]


async def test_the_source_itself_is_no_target(preflight: Preflight) -> None:
    await preflight.launch()
    (candidate,) = (await preflight.check(target_host="hosts/alpha")).candidates
    assert not candidate.probed
    assert rows(candidate)["TARGET_AVAILABLE"].observed_target == "it is the source"


async def test_what_cannot_be_checked_is_refused(preflight: Preflight) -> None:
    await preflight.launch()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await preflight.check(target_host="hosts/nowhere")
    assert from_rpc_error(failure.value).reason is Reason.HOST_NOT_FOUND
    preflight.instance = InstanceId(str(uuid.uuid4()))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await preflight.check()
    assert from_rpc_error(failure.value).reason is Reason.INSTANCE_NOT_FOUND


async def test_many_may_ask_at_once(preflight: Preflight) -> None:
    """Each with a listener of its own."""
    beta = await preflight.agent("beta")
    await preflight.launch()
    found = await asyncio.gather(*(preflight.only(beta) for _ in range(4)))
    assert [rows(candidate) for candidate in found] == [{}] * 4

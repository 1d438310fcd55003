"""CreateInstance: a guest that runs, or nothing at all and why."""

import asyncio
import dataclasses
from typing import Any

import pytest
from remuda.compute.v1.host_pb2 import Host
from remuda.compute.v1.instance_pb2 import (
    DeleteInstanceRequest,
    Instance,
    StartInstanceRequest,
)
from remuda.compute.v1.network_pb2 import Network
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.store.v1.host_pb2 import HostRecord, NetworkRecord
from remuda.store.v1.instance_pb2 import InstanceRecord
from remuda_core.errors import Reason
from remuda_core.ids import HostId
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import FakeHost
from remuda_scheduler.addresses import derived_mac
from remuda_scheduler.ports import Decision, PlacementRequest
from remuda_scheduler.sagas.registry import SAGAS
from remuda_scheduler.store import StoreView
from remuda_scheduler.testing.cluster import NETWORK, PROJECT, Cluster
from remuda_scheduler.testing.ports import FirstFit

DONE, FAILED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_FAILED


async def make_network(cluster: Cluster, cidr: str, gateway: str) -> None:
    network = Network(physical_network="physnet", cidr=cidr, gateway=gateway)
    record = NetworkRecord(id=NETWORK, network=network)
    await cluster.etcd.put(cluster.keys.network(NETWORK), record.SerializeToString())


async def test_the_answer_is_the_instance_and_the_timeline_says_who_asked(cluster: Cluster) -> None:
    instance, operation = await cluster.launch()
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    answer = Instance()
    assert record.response.Unpack(answer)
    assert (answer.uid, answer.state, answer.host) == (
        instance,
        Instance.STATE_RUNNING,
        f"hosts/{cluster.a}",
    )
    assert answer.network_interfaces[0].address == "10.78.0.2"
    assert record.metadata.placement.chosen_host == f"hosts/{cluster.a}"
    assert await cluster.events(instance) == ["OPERATION_DONE"]
    assert cluster.hub.shown[operation][-1].percent == 50


async def test_concurrent_launches_never_share_an_address_or_a_mac(cluster: Cluster) -> None:
    await cluster.lead()
    launched = [await cluster.launch(name=f"vm-{number}") for number in range(30)]
    await asyncio.gather(*(cluster.done(operation, DONE) for _, operation in launched))
    ports = [(await cluster.status(instance)).ports[0] for instance, _ in launched]
    assert len({port.address for port in ports}) == 30
    assert len({port.mac_address for port in ports}) == 30
    assert len(await cluster.left("ports")) == len(await cluster.left("macs")) == 30


async def test_a_mac_that_is_taken_is_derived_anew(cluster: Cluster) -> None:
    instance, operation = await cluster.launch()
    taken = derived_mac(instance, 0, 0)
    await cluster.etcd.put(cluster.keys.mac(taken), b"somebody else's port")
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert (await cluster.status(instance)).ports[0].mac_address == derived_mac(instance, 0, 1)


async def test_an_address_that_somebody_has_is_refused_and_nothing_is_left(cluster: Cluster) -> None:
    _, first = await cluster.launch(address="10.78.0.9", name="one")
    await cluster.lead()
    await cluster.done(first, DONE)
    instance, second = await cluster.launch(address="10.78.0.9", name="two")
    record = await cluster.done(second, FAILED)
    assert from_status(record.error).reason is Reason.ADDRESS_TAKEN
    assert (await cluster.status(instance)).state == Instance.STATE_FAILED
    assert await cluster.left("ports") == ["ports/lan/10.78.0.9"]
    await cluster.nothing_is_open()


async def test_a_network_that_is_used_up_fails_the_launch_until_an_address_is_given_back(
    cluster: Cluster,
) -> None:
    await make_network(cluster, "10.78.0.0/30", "10.78.0.1")
    first, operation = await cluster.launch(name="one")
    await cluster.lead()
    await cluster.done(operation, DONE)
    _, refused = await cluster.launch(name="two")
    assert from_status((await cluster.done(refused, FAILED)).error).reason is Reason.NO_ADDRESS_LEFT
    delete = await cluster.admit("DeleteInstance", first, DeleteInstanceRequest())
    await cluster.done(delete, DONE)
    _, again = await cluster.launch(name="three")
    await cluster.done(again, DONE)


async def test_a_launch_that_no_host_can_take_says_what_was_considered(cluster: Cluster) -> None:
    cluster.room = 0
    instance, operation = await cluster.launch()
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.NO_HOST_FITS
    assert record.metadata.placement.considered == 3
    assert dict(record.metadata.placement.rejections) == {"room": 1}
    assert "launch failed" in (await cluster.status(instance)).status_message
    await cluster.nothing_is_left()


async def test_launches_at_the_same_time_do_not_overbook_a_host(cluster: Cluster) -> None:
    cluster.room = 1
    launched = [await cluster.launch(name=f"vm-{number}") for number in range(5)]
    await cluster.lead()
    records = await asyncio.gather(*(cluster.ended(operation) for _, operation in launched))
    assert sorted(record.metadata.state for record in records) == [DONE] * 3 + [FAILED] * 2
    assert all(len(host.domains) == 1 for host in cluster.agents.hosts.values())


async def test_a_host_that_does_not_exist_is_named_in_the_refusal(cluster: Cluster) -> None:
    _, operation = await cluster.launch(host="hosts/nowhere")
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.HOST_NOT_FOUND
    await cluster.nothing_is_left()


async def test_a_host_may_be_asked_for_by_its_name(cluster: Cluster) -> None:
    instance, operation = await cluster.launch(host="hosts/beta")
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert (await cluster.status(instance)).host_id == cluster.b


async def test_addresses_stay_taken_until_the_dead_host_has_paid(cluster: Cluster) -> None:
    """The guest may run there with them, however long."""

    async def die(host: FakeHost, _: object) -> None:
        cluster.agents.after = alive
        host.fall_silent()

    alive = cluster.agents.after
    instance, operation = await cluster.launch()
    cluster.agents.after = die
    term = await cluster.lead()
    await cluster.done(operation, FAILED)
    status = await cluster.status(instance)
    assert (status.state, status.host_id, list(status.ports)) == (Instance.STATE_FAILED, "", [])
    assert await cluster.left("ports") == ["ports/lan/10.78.0.2"]
    delete = await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())
    await cluster.done(delete, DONE)
    assert await cluster.left("ports") == ["ports/lan/10.78.0.2"]

    cluster.agents.hosts[cluster.a].come_back()
    await term.engine.pay_debts(cluster.a)
    await cluster.nothing_is_left()


async def test_nothing_is_ordered_of_a_host_that_is_fenced(cluster: Cluster) -> None:
    instance, operation = await cluster.launch(host=f"hosts/{cluster.a}")
    await cluster.set_host_state(cluster.a, Host.STATE_FENCED)
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.HOST_UNREACHABLE
    assert cluster.agents.log == []
    assert (await cluster.status(instance)).state == Instance.STATE_FAILED


async def test_an_instance_whose_launch_failed_cannot_be_started(cluster: Cluster) -> None:
    cluster.room = 0
    instance, operation = await cluster.launch()
    await cluster.lead()
    await cluster.done(operation, FAILED)
    start = await cluster.admit("StartInstance", instance, StartInstanceRequest())
    record = await cluster.done(start, FAILED)
    assert from_status(record.error).reason is Reason.STATE_FORBIDS_ACTION
    assert (await cluster.status(instance)).state == Instance.STATE_FAILED


@pytest.mark.parametrize("how", ["deleted", "cordoned"])
async def test_a_host_that_is_taken_away_when_it_is_chosen_gets_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A host is cordoned before it is deleted, so that after the cordon nothing new comes to it."""
    choose = FirstFit.choose
    chosen: list[HostId] = []

    def usable(store: StoreView, host: HostId) -> bool:
        record = store.host(host)
        return record is not None and not record.cordoned

    async def choose_and_take_away(self: FirstFit, request: PlacementRequest) -> Decision:
        gone = {host: "gone" for host in self.hosts if not usable(self.store, host)}
        decision = await choose(self, dataclasses.replace(request, excluded={**request.excluded, **gone}))
        key = cluster.keys.host(decision.host_id)
        if not chosen and how == "deleted":
            await cluster.etcd.delete(key)
        elif not chosen:
            record = HostRecord(id=decision.host_id, cordoned=True)
            await cluster.etcd.put(key, record.SerializeToString())
        chosen.append(decision.host_id)
        return decision

    monkeypatch.setattr(FirstFit, "choose", choose_and_take_away)
    instance, operation = await cluster.launch()
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert chosen == [cluster.a, cluster.b]
    assert (await cluster.status(instance)).host_id == cluster.b
    assert {host for host, _, _ in cluster.agents.log} == {cluster.b}


async def test_the_architecture_that_the_image_says_is_asked_of_placement(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, asked = FirstFit.choose, []

    async def remember(self: FirstFit, request: PlacementRequest) -> Decision:
        asked.append(request.architecture)
        return await choose(self, request)

    monkeypatch.setattr(FirstFit, "choose", remember)
    instance, operation = await cluster.launch()
    key = cluster.keys.instance(PROJECT, instance)
    kv = await cluster.etcd.get(key)
    assert kv is not None
    record = InstanceRecord.FromString(kv.value)
    record.architecture = "aarch64"
    await cluster.etcd.put(key, record.SerializeToString())
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert asked == ["aarch64"]


@pytest.mark.parametrize("address", ["", "10.78.0.9"])
async def test_a_network_that_is_deleted_meanwhile_gets_no_ports(cluster: Cluster, address: str) -> None:
    """The api deletes one that has no ports; between our look and our write it may be gone."""
    instance, operation = await cluster.launch(address=address)
    saga = SAGAS["CreateInstance"]
    deleted = False

    async def allocate(run: Any) -> None:
        nonlocal deleted
        commit = run.commit

        async def commit_later(**fields: Any) -> bool:
            nonlocal deleted
            if not deleted:
                deleted = True
                await cluster.etcd.delete(cluster.keys.network(NETWORK))
            return bool(await commit(**fields))

        run.commit = commit_later
        await saga.step("addresses_allocated").do(run)

    steps = [
        dataclasses.replace(step, do=allocate) if step.name == "addresses_allocated" else step
        for step in saga.steps
    ]
    cluster.sagas = {**SAGAS, saga.action: dataclasses.replace(saga, steps=tuple(steps))}
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert deleted
    assert from_status(record.error).reason is Reason.NETWORK_NOT_FOUND
    assert (await cluster.status(instance)).state == Instance.STATE_FAILED
    await cluster.nothing_is_left()

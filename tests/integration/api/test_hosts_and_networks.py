"""Hosts, flavors, networks: what operators make, and what keeps them from removing it."""

import asyncio
import hashlib
import uuid

import pytest
from remuda.compute.v1 import flavor_pb2, host_pb2, network_pb2
from remuda.scheduler.v1 import live_pb2
from remuda.store.v1 import host_pb2 as host_records
from remuda.store.v1 import instance_pb2 as records
from remuda.store.v1 import operation_pb2 as operation_records
from remuda_core.errors import Reason
from remuda_core.ids import HostId, NetworkId, OperationId

from tests.integration.api.conftest import Client, Cluster, Launch, Pieces, refusal


def host_request(name: str = "node-a", **changes: object) -> host_pb2.CreateHostRequest:
    fields: dict[str, object] = {
        "host_id": str(uuid.uuid4()),
        "host": host_pb2.Host(display_name=name),
        **changes,
    }
    return host_pb2.CreateHostRequest(**fields)  # type: ignore[arg-type]


async def stored(cluster: Cluster, host: str) -> host_records.HostRecord:
    kv = await cluster.etcd.get(cluster.keys.host(HostId(host)))
    assert kv is not None
    return host_records.HostRecord.FromString(kv.value)


async def test_a_host_gets_a_token_of_which_only_the_digest_is_stored(
    cluster: Cluster, admin: Client
) -> None:
    request = host_request(request_id=str(uuid.uuid4()))
    made = await admin.hosts.CreateHost(request)
    assert made.host.state == host_pb2.Host.STATE_ENROLLING
    assert made.host.name == f"hosts/{request.host_id}"
    digest = (await stored(cluster, request.host_id)).enrolment_digest
    assert digest == hashlib.sha256(made.enrolment_token.encode()).digest()
    page = await cluster.etcd.range_prefix(cluster.keys.prefix)
    assert not [kv.key for kv in page.kvs if made.enrolment_token.encode() in kv.value]


async def test_a_repeated_create_host_gives_the_host_and_a_token_that_works_until_it_is_enrolled(
    cluster: Cluster, admin: Client
) -> None:
    request = host_request(request_id=str(uuid.uuid4()))
    first = await admin.hosts.CreateHost(request)
    again = await admin.hosts.CreateHost(request)
    assert again.host.name == first.host.name
    digest = (await stored(cluster, request.host_id)).enrolment_digest
    assert digest == hashlib.sha256(again.enrolment_token.encode()).digest()
    status = host_records.HostStatus(state=host_pb2.Host.STATE_UP, enrolled=True)
    await cluster.etcd.put(cluster.keys.host_status(HostId(request.host_id)), status.SerializeToString())
    assert not (await admin.hosts.CreateHost(request)).enrolment_token
    assert (await stored(cluster, request.host_id)).enrolment_digest == digest


async def test_a_repeated_create_host_gives_the_same_token_where_it_is_remembered(
    cluster: Cluster, admin: Client
) -> None:
    request = host_request(request_id=str(uuid.uuid4()))
    answers = await asyncio.gather(*(create_host(admin, request) for _ in range(4)))
    assert len({answer.enrolment_token for answer in answers}) == 1
    assert answers[0].enrolment_token
    await cluster.start_gateway()
    elsewhere = await create_host(cluster.client("user/root;admin", at=1), request)
    assert elsewhere.enrolment_token not in ("", answers[0].enrolment_token)
    digest = (await stored(cluster, request.host_id)).enrolment_digest
    assert digest == hashlib.sha256(elsewhere.enrolment_token.encode()).digest()
    # The first replica notices that its own is no longer good.
    last = await create_host(admin, request)
    digest = (await stored(cluster, request.host_id)).enrolment_digest
    assert digest == hashlib.sha256(last.enrolment_token.encode()).digest()


async def test_a_repeated_create_host_leaves_a_later_host_of_the_same_uuid_alone(
    cluster: Cluster, admin: Client
) -> None:
    request = host_request("n1", request_id=str(uuid.uuid4()))
    await admin.hosts.CreateHost(request)
    await admin.hosts.DeleteHost(host_pb2.DeleteHostRequest(name=f"hosts/{request.host_id}"))
    later = await admin.hosts.CreateHost(host_request("n2", host_id=request.host_id))
    again = await admin.hosts.CreateHost(request)
    assert (again.host.display_name, again.enrolment_token) == ("n1", "")
    digest = (await stored(cluster, request.host_id)).enrolment_digest
    assert digest == hashlib.sha256(later.enrolment_token.encode()).digest()


async def test_a_request_id_of_create_host_is_good_for_one_host(admin: Client) -> None:
    request = host_request(request_id=str(uuid.uuid4()))
    await admin.hosts.CreateHost(request)
    request.host.display_name = "node-b"
    assert (await refusal(admin.hosts.CreateHost(request))).reason is Reason.REQUEST_ID_REUSED


async def create_host(client: Client, request: host_pb2.CreateHostRequest) -> host_pb2.CreateHostResponse:
    return await client.hosts.CreateHost(request)


async def test_host_names_and_ids_are_unique_and_validate_only_gives_no_token(
    cluster: Cluster, admin: Client
) -> None:
    preview = await admin.hosts.CreateHost(host_request(validate_only=True))
    assert not preview.enrolment_token
    assert not await cluster.keys_under("hosts/")
    request = host_request()
    await admin.hosts.CreateHost(request)
    for other in (host_request(), host_request("node-b", host_id=request.host_id)):
        assert (await refusal(admin.hosts.CreateHost(other))).reason is Reason.ALREADY_EXISTS


async def test_a_host_shows_inventory_and_what_instances_and_reservations_use(
    cluster: Cluster, admin: Client, launch: Launch
) -> None:
    host = await cluster.add_host("node-a")
    web = await launch("web", host=host)
    status = host_records.HostStatus(
        state=host_pb2.Host.STATE_UP, inventory=host_pb2.HostInventory(vcpus=8, memory_mib=4096)
    )
    await cluster.etcd.put(cluster.keys.host_status(HostId(host)), status.SerializeToString())
    reservations = [
        operation_records.Reservation(host_id=host, instance_id=web.uid, vcpus=9, memory_mib=9),
        operation_records.Reservation(host_id=host, instance_id=str(uuid.uuid4()), vcpus=2, memory_mib=128),
    ]
    journal = operation_records.Journal(reservations=reservations)
    await cluster.etcd.put(cluster.keys.journal(OperationId("j")), journal.SerializeToString())
    # The journals are not among what a read waits for: they are seen when their watch has brought them.
    await cluster.gateways[0].caches.journals.wait_revision((await cluster.etcd.range_key("x")).revision, 5)
    now = (("remuda-min-revision", str((await cluster.etcd.range_key("x")).revision)),)
    for name in (f"hosts/{host}", "hosts/node-a"):
        found = await admin.hosts.GetHost(host_pb2.GetHostRequest(name=name), metadata=now)
        assert (found.state, found.inventory.vcpus) == (host_pb2.Host.STATE_UP, 8)
        # The instance's own reservation on the host where it is counts once.
        assert found.usage == host_pb2.HostUsage(vcpus=3, memory_mib=192, instances=1)
    listed = await admin.hosts.ListHosts(host_pb2.ListHostsRequest(), metadata=now)
    assert [one.display_name for one in listed.hosts] == ["node-a"]
    error = await refusal(admin.hosts.GetHost(host_pb2.GetHostRequest(name="hosts/node-z")))
    assert error.reason is Reason.HOST_NOT_FOUND


async def test_only_an_empty_host_is_deleted_and_its_status_goes_with_it(
    cluster: Cluster, admin: Client, alice: Client, launch: Launch
) -> None:
    host = await cluster.add_host("node-a")
    status = host_records.HostStatus(state=host_pb2.Host.STATE_UP, enrolled=True)
    await cluster.etcd.put(cluster.keys.host_status(HostId(host)), status.SerializeToString())
    web = await launch("web", host=host)
    request = host_pb2.DeleteHostRequest(name="hosts/node-a")
    error = await refusal(admin.hosts.DeleteHost(request))
    assert (error.reason, error.metadata["instances"]) == (Reason.HOST_IN_USE, "1")
    await cluster.etcd.delete_prefix(cluster.keys.instance_statuses)
    debt = cluster.keys.debt(HostId(host), OperationId("o"), "s")
    await cluster.etcd.put(debt, b"")
    assert (await refusal(admin.hosts.DeleteHost(request))).metadata["debts"] == "1"
    await cluster.etcd.delete(debt)
    request.etag = "1"
    assert (await refusal(admin.hosts.DeleteHost(request))).reason is Reason.ETAG_MISMATCH
    request.etag = ""
    # What is placed there between the look and the removal would be lost with it.
    assert (await refusal(admin.hosts.DeleteHost(request))).reason is Reason.HOST_NOT_CORDONED
    await admin.hosts.CordonHost(host_pb2.CordonHostRequest(name="hosts/node-a"))
    await admin.hosts.DeleteHost(request)
    assert not [key for key in await cluster.keys_under("host") if host in key or "node-a" in key]
    assert web.host == f"hosts/{host}"


async def test_a_host_is_cordoned_and_uncordoned(cluster: Cluster, admin: Client) -> None:
    await cluster.add_host("node-a")
    cordon = host_pb2.CordonHostRequest(name="hosts/node-a", validate_only=True)
    assert (await admin.hosts.CordonHost(cordon)).cordoned
    cordon.validate_only = False
    first = await admin.hosts.CordonHost(cordon)
    again = await admin.hosts.CordonHost(cordon)
    assert (first.cordoned, first.etag) == (True, again.etag)
    cordon.request_id = str(uuid.uuid4())
    assert (await admin.hosts.CordonHost(cordon)).etag == first.etag
    assert (await admin.hosts.CordonHost(cordon)).etag == first.etag
    host = await admin.hosts.UncordonHost(host_pb2.UncordonHostRequest(name="hosts/node-a"))
    assert not host.cordoned
    assert host.etag != first.etag


async def test_explain_placement_asks_the_leader_with_uuids(
    cluster: Cluster, admin: Client, pieces: Pieces
) -> None:
    host = await cluster.add_host("node-a")
    request = host_pb2.ExplainPlacementRequest(flavor=pieces.flavor, host="hosts/node-a")
    explanation = await admin.hosts.ExplainPlacement(request)
    assert explanation.chosen_host == "hosts/chosen"
    (asked,) = cluster.leader.live.explained
    assert isinstance(asked, live_pb2.ExplainRequest)
    inner = host_pb2.ExplainPlacementRequest()
    assert asked.request.Unpack(inner)
    assert inner.host == f"hosts/{host}"
    request.flavor = "flavors/none"
    assert (await refusal(admin.hosts.ExplainPlacement(request))).reason is Reason.FLAVOR_NOT_FOUND


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cidr": "10.0.0.5/24"}, "network.cidr"),
        ({"cidr": "10.0.0.0/31"}, "network.cidr"),
        ({"gateway": "10.0.1.1"}, "network.gateway"),
        ({"gateway": "10.0.0.255"}, "network.gateway"),
        ({"allocation_start": "10.0.0.9", "allocation_end": "10.0.0.8"}, "network.allocation_end"),
        ({"allocation_start": "192.168.0.1"}, "network.allocation_start"),
    ],
)
async def test_a_network_whose_addresses_do_not_fit_is_refused(
    admin: Client, change: dict[str, str], field: str
) -> None:
    fields = {"physical_network": "physnet", "cidr": "10.0.0.0/24", **change}
    request = network_pb2.CreateNetworkRequest(network_id="n", network=network_pb2.Network(**fields))  # type: ignore[arg-type]
    error = await refusal(admin.networks.CreateNetwork(request))
    assert error.reason is Reason.INVALID_ARGUMENT
    assert error.violations[0].subject == field


async def test_a_network_with_a_port_stays(cluster: Cluster, admin: Client, pieces: Pieces) -> None:
    found = await admin.networks.GetNetwork(network_pb2.GetNetworkRequest(name=pieces.network))
    assert (found.allocation_start, found.allocation_end) == ("10.78.0.2", "10.78.0.254")
    port = cluster.keys.port(NetworkId("net"), "10.78.0.7")
    revision = await cluster.etcd.put(port, records.PortRecord().SerializeToString())
    request = network_pb2.DeleteNetworkRequest(name=pieces.network)
    assert (await refusal(admin.networks.DeleteNetwork(request))).reason is Reason.NETWORK_IN_USE
    found = await admin.networks.GetNetwork(
        network_pb2.GetNetworkRequest(name=pieces.network),
        metadata=(("remuda-min-revision", str(revision)),),
    )
    assert found.ports == 1
    await cluster.etcd.delete(port)
    request.validate_only = True
    await admin.networks.DeleteNetwork(request)
    assert await cluster.keys_under("networks/")
    request.validate_only = False
    await admin.networks.DeleteNetwork(request)
    assert not await cluster.keys_under("networks/")
    assert (await refusal(admin.networks.DeleteNetwork(request))).reason is Reason.NETWORK_NOT_FOUND


async def test_a_flavor_is_made_once_and_deleted_with_its_etag(admin: Client, pieces: Pieces) -> None:
    again = flavor_pb2.CreateFlavorRequest(
        flavor_id="small", flavor=flavor_pb2.Flavor(vcpus=1, memory_mib=64)
    )
    assert (await refusal(admin.flavors.CreateFlavor(again))).reason is Reason.ALREADY_EXISTS
    request = flavor_pb2.DeleteFlavorRequest(name=pieces.flavor, etag="1")
    assert (await refusal(admin.flavors.DeleteFlavor(request))).reason is Reason.ETAG_MISMATCH
    request.etag = ""
    await admin.flavors.DeleteFlavor(request)
    assert (await refusal(admin.flavors.DeleteFlavor(request))).reason is Reason.FLAVOR_NOT_FOUND

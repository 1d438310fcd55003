"""Lists in pages of one revision, filters, WatchInstances, and reads that see what was written."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from google.longrunning import operations_pb2 as lro
from remuda.compute.v1 import flavor_pb2, instance_pb2, migration_pb2, network_pb2
from remuda.image.v1 import image_pb2
from remuda.store.v1 import instance_pb2 as records
from remuda_api.listing.tokens import PageToken, encode, query_digest
from remuda_core.errors import Reason
from remuda_core.etcd.client import Etcd
from remuda_core.ids import InstanceId, MigrationId
from remuda_core.testing.waiting import wait_for

from tests.integration.api.conftest import Client, Cluster, Launch, Pieces, refusal

Instance = instance_pb2.Instance


async def pages(client: Client, request: instance_pb2.ListInstancesRequest) -> AsyncIterator[list[str]]:
    while True:
        answer = await client.instances.ListInstances(request)
        yield [instance.name for instance in answer.instances]
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


async def shown(cluster: Cluster, count: int) -> None:
    """The gateway's cache has so many instances."""
    await wait_for(lambda: len(cluster.gateways[0].caches.instances) == count, timeout=60)


async def test_pages_show_one_revision_while_instances_come_and_go(
    cluster: Cluster, alice: Client, launch: Launch, pieces: Pieces
) -> None:
    there = sorted([(await launch(f"web-{number}")).name for number in range(7)])
    request = instance_pb2.ListInstancesRequest(parent="projects/demo", page_size=2)
    seen: list[str] = []
    number = 0
    async for page in pages(alice, request):
        assert len(page) <= 2
        seen += page
        number += 1
        await alice.instances.CreateInstance(pieces.request(f"late-{number}"))
        if number == 1:
            # The last one of the listing goes before its page is read.
            delete = await alice.instances.DeleteInstance(instance_pb2.DeleteInstanceRequest(name=there[-1]))
            await cluster.leader.remove(delete.name)
    assert seen == there


async def test_pages_go_on_at_another_gateway_which_reads_the_revision_from_etcd(
    cluster: Cluster, alice: Client, launch: Launch, pieces: Pieces
) -> None:
    there = sorted([(await launch(f"web-{number}")).name for number in range(5)])
    request = instance_pb2.ListInstancesRequest(parent="projects/demo", page_size=2)
    first = await alice.instances.ListInstances(request)
    delete = await alice.instances.DeleteInstance(instance_pb2.DeleteInstanceRequest(name=there[-1]))
    await cluster.leader.remove(delete.name)
    await cluster.start_gateway()
    other = cluster.client("user/alice;project:demo", at=1)
    request.page_token = first.next_page_token
    rest = [name async for page in pages(other, request) for name in page]
    assert [*(instance.name for instance in first.instances), *rest] == there
    answer = await other.instances.ListInstances(
        instance_pb2.ListInstancesRequest(
            parent="projects/demo", page_size=2, page_token=first.next_page_token
        )
    )
    assert {instance.state for instance in answer.instances} == {Instance.STATE_RUNNING}


async def test_a_page_token_whose_revision_is_compacted_has_expired(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    for number in range(3):
        await launch(f"web-{number}")
    request = instance_pb2.ListInstancesRequest(parent="projects/demo", page_size=1)
    first = await alice.instances.ListInstances(request)
    await cluster.start_gateway()
    other = cluster.client("user/alice;project:demo", at=1)
    await cluster.etcd.put(cluster.keys.prefix + "x", b"")
    await cluster.etcd.compact((await cluster.etcd.range_key(cluster.keys.leader)).revision)
    request.page_token = first.next_page_token
    assert (await refusal(other.instances.ListInstances(request))).reason is Reason.PAGE_TOKEN_EXPIRED
    # Where it is pinned it goes on.
    assert len((await alice.instances.ListInstances(request)).instances) == 1


async def test_a_damaged_page_token_and_one_of_another_query_are_refused(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    await launch("a")
    await launch("b")
    request = instance_pb2.ListInstancesRequest(parent="projects/demo", page_size=1)
    token = (await alice.instances.ListInstances(request)).next_page_token
    for page_token, text in (("rubbish!", ""), (token, "state = RUNNING")):
        request.page_token, request.filter = page_token, text
        error = await refusal(alice.instances.ListInstances(request))
        assert error.reason is Reason.PAGE_TOKEN_INVALID


async def test_a_filter_picks_by_state_host_name_and_label(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    host = await cluster.add_host("node-a")
    web, db = await launch("web", host=host), await launch("db", Instance.STATE_STOPPED)
    labelled = Instance(
        name=db.name, display_name="db", flavor=db.flavor, image=db.image, labels={"a": "b c"}
    )
    await alice.instances.UpdateInstance(instance_pb2.UpdateInstanceRequest(instance=labelled))
    await wait_for(lambda: labels_seen(alice, db.name), timeout=60)

    async def listed(text: str) -> list[str]:
        request = instance_pb2.ListInstancesRequest(parent="projects/demo", filter=text)
        return [one.display_name for one in (await alice.instances.ListInstances(request)).instances]

    assert await listed("state = RUNNING") == ["web"]
    assert await listed("state = STATE_STOPPED AND display_name = db") == ["db"]
    assert await listed(f'host = "hosts/{host}"') == ["web"]
    assert await listed("host = node-a") == ["web"]
    assert await listed("host = nowhere") == []
    assert await listed('labels.a = "b c"') == ["db"]
    assert await listed(f'host = "{host}" AND state = STOPPED') == []
    for text in ("state = FLYING", "vcpus = 1", "state == RUNNING", "state = RUNNING OR state = STOPPED"):
        request = instance_pb2.ListInstancesRequest(parent="projects/demo", filter=text)
        assert (await refusal(alice.instances.ListInstances(request))).reason is Reason.FILTER_INVALID
    assert web.name


async def labels_seen(client: Client, name: str) -> bool:
    found = await client.instances.GetInstance(instance_pb2.GetInstanceRequest(name=name))
    return bool(found.labels)


async def test_all_projects_means_those_that_the_caller_may_see(
    cluster: Cluster, alice: Client, bob: Client, admin: Client, launch: Launch, pieces: Pieces
) -> None:
    web = await launch("web")
    image = await cluster.add_image(project="other")
    request = pieces.request("theirs", image=image)
    request.parent = "projects/other"
    await bob.instances.CreateInstance(request)
    await shown(cluster, 2)
    everything = instance_pb2.ListInstancesRequest(parent="projects/-")
    names = {
        who: [one.display_name for one in (await client.instances.ListInstances(everything)).instances]
        for who, client in (("alice", alice), ("bob", bob), ("admin", admin))
    }
    assert names["alice"] == ["web"]
    assert names["bob"] == ["theirs"]
    assert sorted(names["admin"]) == ["theirs", "web"]
    assert web.uid


async def test_what_one_gateway_wrote_is_read_at_another_with_the_revision_or_by_a_miss(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    await cluster.start_gateway()
    other = cluster.client("user/alice;project:demo", at=1)
    for number in range(5):
        call = alice.instances.CreateInstance(pieces.request(f"web-{number}"))
        operation = await call
        revision = str(dict(await call.trailing_metadata())["remuda-revision"])
        uid = (await cluster.leader.record(operation.name)).instance_id
        # Without a revision: the other cache may not have it, etcd has.
        name = f"projects/demo/instances/{uid}"
        found = await other.instances.GetInstance(instance_pb2.GetInstanceRequest(name=name))
        assert found.operation == operation.name
        assert (await other.operations.GetOperation(lro.GetOperationRequest(name=operation.name))).name
        listed = await other.instances.ListInstances(
            instance_pb2.ListInstancesRequest(parent="projects/demo"),
            metadata=(("remuda-min-revision", revision),),
        )
        assert name in {one.name for one in listed.instances}


async def test_an_instance_is_found_by_display_name_and_a_wrong_min_revision_is_refused(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    by_name = instance_pb2.GetInstanceRequest(name="projects/demo/instances/web")
    assert (await alice.instances.GetInstance(by_name)).uid == web.uid
    by_name.name = "projects/demo/instances/nobody"
    assert (await refusal(alice.instances.GetInstance(by_name))).reason is Reason.INSTANCE_NOT_FOUND
    call = alice.instances.GetInstance(
        instance_pb2.GetInstanceRequest(name=web.name), metadata=(("remuda-min-revision", "soon"),)
    )
    assert (await refusal(call)).reason is Reason.INVALID_ARGUMENT


async def test_watch_shows_what_there_is_then_every_change_and_only_ones_own_project(
    cluster: Cluster, alice: Client, bob: Client, launch: Launch, pieces: Pieces
) -> None:
    web = await launch("web")
    seen: list[instance_pb2.WatchInstancesResponse] = []
    theirs: list[instance_pb2.WatchInstancesResponse] = []

    async def read(client: Client, parent: str, into: list[instance_pb2.WatchInstancesResponse]) -> None:
        request = instance_pb2.WatchInstancesRequest(parent=parent)
        async for response in client.instances.WatchInstances(request):
            into += [response]

    tasks = [
        asyncio.create_task(read(alice, "projects/demo", seen)),
        asyncio.create_task(read(bob, "projects/-", theirs)),
    ]
    kinds = instance_pb2.WatchInstancesResponse
    await wait_for(lambda: [one.kind for one in seen] == [kinds.KIND_UPSERT, kinds.KIND_SYNCED], timeout=60)
    stop = await alice.instances.StopInstance(instance_pb2.StopInstanceRequest(name=web.name))
    await wait_for(lambda: seen[-1].instance.operation == stop.name, timeout=60)
    await cluster.leader.finish(stop.name, state=Instance.STATE_STOPPED)
    await wait_for(
        lambda: (seen[-1].instance.state, seen[-1].instance.operation) == (Instance.STATE_STOPPED, ""),
        timeout=60,
    )
    delete = await alice.instances.DeleteInstance(instance_pb2.DeleteInstanceRequest(name=web.name))
    await cluster.leader.remove(delete.name)
    await wait_for(lambda: seen[-1].kind == kinds.KIND_DELETE, timeout=60)
    assert (seen[-1].instance.name, seen[-1].instance.uid) == (web.name, web.uid)
    await alice.instances.CreateInstance(pieces.request("db"))
    await wait_for(lambda: seen[-1].instance.display_name == "db", timeout=60)
    assert [one.kind for one in theirs] == [kinds.KIND_SYNCED]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_migrations_are_listed_newest_first_and_events_oldest_first(
    cluster: Cluster, alice: Client, bob: Client, launch: Launch
) -> None:
    web = await launch("web")
    names: list[str] = []
    for number in range(5):
        name = f"{web.name}/migrations/m{number}"
        migration = migration_pb2.Migration(name=name, state=migration_pb2.Migration.STATE_DONE)
        migration.create_time.FromSeconds(1000 + number)
        key = cluster.keys.migration(InstanceId(web.uid), MigrationId(f"m{number}"))
        await cluster.etcd.put(key, records.MigrationRecord(migration=migration).SerializeToString())
        event = records.EventRecord()
        event.event.sequence = number
        await cluster.etcd.put(cluster.keys.event(InstanceId(web.uid), number), event.SerializeToString())
        names.insert(0, name)
    revision = (("remuda-min-revision", str((await cluster.etcd.range_key(web.name)).revision)),)
    for parent in (web.name, "projects/demo/instances/web", "projects/demo/instances/-"):
        request = migration_pb2.ListMigrationsRequest(parent=parent, page_size=2)
        found: list[str] = []
        while True:
            answer = await alice.migrations.ListMigrations(request, metadata=revision)
            found += [one.name for one in answer.migrations]
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        assert found == names
    got = await alice.migrations.GetMigration(migration_pb2.GetMigrationRequest(name=names[0]))
    assert got.name == names[0]
    missing = migration_pb2.GetMigrationRequest(name=f"{web.name}/migrations/none")
    assert (await refusal(alice.migrations.GetMigration(missing))).reason is Reason.MIGRATION_NOT_FOUND
    listing = instance_pb2.ListInstanceEventsRequest(parent=web.name, page_size=3)
    events = await alice.instances.ListInstanceEvents(listing)
    assert [event.sequence for event in events.events] == [2, 3, 4]
    error = await refusal(bob.instances.ListInstanceEvents(listing))
    assert error.reason is Reason.PERMISSION_DENIED


async def test_flavors_networks_and_images_are_listed_in_pages(
    cluster: Cluster, alice: Client, admin: Client, pieces: Pieces
) -> None:
    for name in ("a", "b", "c"):
        flavor = flavor_pb2.Flavor(vcpus=1, memory_mib=64)
        await admin.flavors.CreateFlavor(flavor_pb2.CreateFlavorRequest(flavor_id=name, flavor=flavor))
    now = (("remuda-min-revision", str((await cluster.etcd.range_key("x")).revision)),)
    request = flavor_pb2.ListFlavorsRequest(page_size=3)
    first = await alice.flavors.ListFlavors(request, metadata=now)
    request.page_token = first.next_page_token
    second = await alice.flavors.ListFlavors(request)
    names = [flavor.name for flavor in [*first.flavors, *second.flavors]]
    assert names == ["flavors/a", "flavors/b", "flavors/c", "flavors/small"]
    networks = await alice.networks.ListNetworks(network_pb2.ListNetworksRequest(), metadata=now)
    assert [network.name for network in networks.networks] == ["networks/net"]
    listing = image_pb2.ListImagesRequest(parent="projects/demo")
    images = await alice.images.ListImages(listing, metadata=now)
    assert [image.name for image in images.images] == [pieces.image]


async def test_a_crafted_page_token_shows_nothing_beside_the_list(
    cluster: Cluster, alice: Client, bob: Client, launch: Launch
) -> None:
    web = await launch("web")
    stop = await alice.instances.StopInstance(instance_pb2.StopInstanceRequest(name=web.name))
    await alice.operations.CancelOperation(lro.CancelOperationRequest(name=stop.name))
    revision = (await cluster.etcd.range_key("x")).revision
    for key in ("cancels/", "claims/", "flavors"):
        token = PageToken(
            revision=revision, last_key=cluster.keys.prefix + key, query=query_digest("flavors")
        )
        request = flavor_pb2.ListFlavorsRequest(page_size=1, page_token=encode(token))
        error = await refusal(bob.flavors.ListFlavors(request))
        assert error.reason is Reason.PAGE_TOKEN_INVALID


async def test_a_page_token_of_the_future_has_expired(cluster: Cluster, alice: Client) -> None:
    token = PageToken(revision=10**12, last_key=cluster.keys.flavors + "a", query=query_digest("flavors"))
    request = flavor_pb2.ListFlavorsRequest(page_token=encode(token))
    assert (await refusal(alice.flavors.ListFlavors(request))).reason is Reason.PAGE_TOKEN_EXPIRED


async def test_a_negative_page_size_is_refused_by_every_list(alice: Client) -> None:
    for call in (
        alice.operations.ListOperations(lro.ListOperationsRequest(page_size=-1)),
        alice.flavors.ListFlavors(flavor_pb2.ListFlavorsRequest(page_size=-1)),
    ):
        error = await refusal(call)
        assert error.reason is Reason.INVALID_ARGUMENT
        assert error.violations[0].subject == "page_size"


async def test_a_revision_that_the_store_has_never_seen_is_refused_at_once(
    cluster: Cluster, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = 0
    newest = Etcd.newest

    async def counted(self: Etcd, prefix: str) -> tuple[int, int, int]:
        nonlocal probes
        probes += 1
        return await newest(self, prefix)

    monkeypatch.setattr(Etcd, "newest", counted)
    present = (await cluster.etcd.range_key("x")).revision
    request = instance_pb2.ListInstancesRequest(parent="projects/demo")
    async with asyncio.timeout(2):
        for revision in (present + 1_000_000, (1 << 63) - 1):
            ahead = (("remuda-min-revision", str(revision)),)
            error = await refusal(alice.instances.ListInstances(request, metadata=ahead))
            assert error.reason is Reason.REVISION_AHEAD
            assert int(error.metadata["revision"]) >= present
    assert probes == 0
    odd = (("remuda-min-revision", "9" * 5000),)
    error = await refusal(alice.instances.ListInstances(request, metadata=odd))
    assert error.reason is Reason.INVALID_ARGUMENT

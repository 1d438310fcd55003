"""Instances from launch to delete, over the public api, through every service."""

import asyncio
import uuid
from collections import Counter

import grpc
import pytest
from google.longrunning import operations_pb2 as lro
from google.protobuf.duration_pb2 import Duration
from remuda.compute.v1 import host_pb2, instance_pb2, operation_pb2
from remuda_core.errors import Reason
from remuda_core.rpc.status import from_status
from remuda_core.testing.waiting import wait_for

from tests.integration.mesh.conftest import IMAGE, PROJECT, Cluster, Instance, Metadata, metadata_of, refusal
from tests.integration.mesh.processes import HOST_MIB

LARGE_MIB = 512
RUNNING, STOPPED, FAILED = Instance.STATE_RUNNING, Instance.STATE_STOPPED, Instance.STATE_FAILED


async def test_a_launched_instance_runs_with_an_address_and_a_delete_leaves_nothing(cluster: Cluster) -> None:
    made = await cluster.launch("web")
    assert made.state == RUNNING
    assert made.network_interfaces[0].address.startswith("10.78.0.")
    assert made.network_interfaces[0].mac_address
    host = cluster.host_name(made.host)
    assert cluster.mesh.domains()[host] == {made.uid}
    assert cluster.mesh.directories() == {f"{host}/{made.uid}"}
    await cluster.delete(made.name)
    assert not any(cluster.mesh.domains().values())
    assert cluster.mesh.directories() == set()
    assert await cluster.keys_left() == set()
    assert (await refusal(cluster.get(made.name))).reason is Reason.INSTANCE_NOT_FOUND


async def test_whoever_saw_an_operation_end_reads_what_it_did(cluster: Cluster) -> None:
    """The end comes by one watch of etcd and the instance by another: they must not be told out of step."""
    for number in range(5):
        made = await cluster.launch(f"web-{number}")
        assert (await cluster.get(made.name)).state == RUNNING
        assert (await cluster.get(made.name)).operation == ""
        await cluster.delete(made.name)
        assert (await refusal(cluster.get(made.name))).reason is Reason.INSTANCE_NOT_FOUND


async def test_the_base_image_is_fetched_whole_from_the_image_store(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="gamma")
    (base,) = (cluster.mesh.hosts["gamma"].pool / "base").glob("*.raw")
    assert base.read_bytes() == IMAGE
    await cluster.delete(made.name)
    assert base.exists()  # the cache stays for the next one


async def test_many_launches_at_once_get_addresses_and_macs_of_their_own(cluster: Cluster) -> None:
    made = await asyncio.gather(*(cluster.launch(f"many-{number}") for number in range(20)))
    assert len({one.network_interfaces[0].address for one in made}) == 20
    assert len({one.network_interfaces[0].mac_address for one in made}) == 20
    domains = cluster.mesh.domains()
    assert sum(len(found) for found in domains.values()) == 20
    for one in made:
        assert one.uid in domains[cluster.host_name(one.host)]
    await cluster.delete_all()
    assert await cluster.keys_left() == set()
    assert cluster.mesh.directories() == set()


async def test_no_host_is_given_more_than_it_has(cluster: Cluster) -> None:
    room = 3 * (HOST_MIB // LARGE_MIB)
    operations = await asyncio.gather(
        *(cluster.create(f"large-{number}", flavor="flavors/large") for number in range(20))
    )
    ended = await asyncio.gather(*(cluster.ended(operation) for operation in operations))
    failed = [from_status(operation.error) for operation in ended if operation.HasField("error")]
    assert len(ended) - len(failed) == room
    assert {error.reason for error in failed} == {Reason.NO_HOST_FITS}
    hosts = (await cluster.admin.hosts.ListHosts(host_pb2.ListHostsRequest())).hosts
    assert {host.usage.memory_mib for host in hosts} == {HOST_MIB}
    assert Counter(len(found) for found in cluster.mesh.domains().values()) == {HOST_MIB // LARGE_MIB: 3}


async def test_a_launch_that_fails_leaves_nothing_and_says_why(cluster: Cluster) -> None:
    name = cluster.host("beta")
    await cluster.admin.hosts.CordonHost(host_pb2.CordonHostRequest(name=name))
    try:
        # Two hosts mount the shared pool; beta is cordoned, and alpha full.
        await asyncio.gather(
            *(
                cluster.launch(f"full-{number}", host="alpha", flavor="flavors/large")
                for number in range(HOST_MIB // LARGE_MIB)
            )
        )
        operation = await cluster.create("nowhere", pool="shared")
        error = await cluster.failure(operation)
    finally:
        await cluster.admin.hosts.UncordonHost(host_pb2.UncordonHostRequest(name=name))
    assert error.reason is Reason.NO_HOST_FITS
    metadata = metadata_of(await cluster.ended(operation))
    # Its owner learns how many refused it, an operator which.
    assert (metadata.placement.considered, len(metadata.placement.hosts)) == (3, 0)
    request = lro.GetOperationRequest(name=operation.name)
    explained = metadata_of(await cluster.admin.operations.GetOperation(request)).placement
    verdicts = {one.display_name: one.filter for one in explained.hosts}
    assert verdicts == {"alpha": "memory", "beta": "availability", "gamma": "storage"}
    found = await cluster.get(metadata.target)
    assert (found.state, found.host) == (FAILED, "")
    assert (
        found.status_message == "launch failed: none of 3 hosts fits (availability: 1, memory: 1, storage: 1)"
    )
    left = {key.split("/")[0] for key in await cluster.keys_left() if found.uid in key}
    assert left == {"instances", "instance_status", "events"}
    assert (await cluster.events(found.name))[-1] == "OPERATION_FAILED"
    await cluster.delete(found.name)


async def test_a_launch_that_fails_on_its_host_is_undone_there(cluster: Cluster) -> None:
    """Where the base image shall go there is a file in the way."""
    bases = cluster.mesh.hosts["beta"].pool / "base"
    moved = bases.with_name("moved")
    bases.rename(moved)
    bases.write_text("no directory\n")
    try:
        failed = await cluster.ended(await cluster.create("stuck", host="beta"))
    finally:
        bases.unlink()
        moved.rename(bases)
    assert failed.HasField("error")
    metadata = metadata_of(failed)
    states = {step.name: step.state for step in metadata.steps}
    assert set(states) == {"capacity_reserved", "addresses_allocated", "base_image_present"}
    assert set(states.values()) == {operation_pb2.OperationStep.STATE_UNDONE}
    found = await cluster.get(metadata.target)
    assert (found.state, found.host) == (FAILED, "")
    assert found.status_message.startswith("launch failed: ")
    assert found.network_interfaces[0].address == ""
    kinds = {name.split("/")[0] for name in await cluster.keys_left()}
    assert kinds == {"instances", "instance_status", "instance_names", "events"}
    assert not any(cluster.mesh.domains().values())
    assert cluster.mesh.directories() == set()


async def test_get_list_watch_events_allowed_actions_and_console_show_the_instance(cluster: Cluster) -> None:
    call = cluster.alice.instances.WatchInstances(instance_pb2.WatchInstancesRequest(parent=PROJECT))
    told: list[instance_pb2.WatchInstancesResponse] = []

    async def follow() -> None:
        while (answer := await call.read()) is not grpc.aio.EOF:
            assert isinstance(answer, instance_pb2.WatchInstancesResponse)
            told.append(answer)

    following = asyncio.create_task(follow())
    try:
        kinds = instance_pb2.WatchInstancesResponse
        await wait_for(lambda: any(one.kind == kinds.KIND_SYNCED for one in told), timeout=60)
        made = await cluster.launch("web", labels={"tier": "front"})

        def states() -> list[int]:
            return [one.instance.state for one in told if one.instance.uid == made.uid]

        await wait_for(lambda: states()[-1:] == [RUNNING], timeout=60, last_status=states)
        assert states()[0] == Instance.STATE_CREATING
        listing = instance_pb2.ListInstancesRequest(parent=PROJECT, filter="state = RUNNING")
        (listed,) = (await cluster.alice.instances.ListInstances(listing)).instances
        assert (listed.name, dict(listed.labels)) == (made.name, {"tier": "front"})
        allowed = await cluster.alice.instances.ListAllowedActions(
            instance_pb2.ListAllowedActionsRequest(name=made.name)
        )
        actions = {one.action for one in allowed.actions if one.allowed}
        assert actions >= {"StopInstance", "LiveMigrateInstance", "DeleteInstance"}
        assert "OPERATION_DONE" in await cluster.events(made.name)
        console = cluster.mesh.hosts[cluster.host_name(made.host)].directory / f"console/{made.uid}.console"
        console.write_bytes(b"Linux version 6.1\nlogin: ")
        output = await cluster.alice.instances.GetConsoleOutput(
            instance_pb2.GetConsoleOutputRequest(name=made.name, max_bytes=7)
        )
        assert (output.output, output.truncated) == (b"login: ", True)
        await cluster.delete(made.name)
        await wait_for(lambda: told[-1].kind == kinds.KIND_DELETE, timeout=60, last_status=states)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_an_instance_is_stopped_and_started_again_on_its_host(cluster: Cluster) -> None:
    made = await cluster.launch("web")
    stop = instance_pb2.StopInstanceRequest(name=made.name, grace=Duration(seconds=5))
    await cluster.done(await cluster.alice.instances.StopInstance(stop))
    stopped = await cluster.get(made.name)
    assert (stopped.state, stopped.observed.power_state) == (STOPPED, Instance.POWER_STATE_SHUTOFF)
    start = instance_pb2.StartInstanceRequest(name=made.name)
    await cluster.done(await cluster.alice.instances.StartInstance(start))
    again = await cluster.get(made.name)
    assert (again.state, again.host, again.epoch) == (RUNNING, made.host, made.epoch)
    assert again.network_interfaces == made.network_interfaces
    # A second request for a state that holds is a success.
    await cluster.done(await cluster.alice.instances.StartInstance(start))


async def test_of_two_conflicting_requests_one_wins_and_the_other_is_told_which(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha")
    moving = await cluster.migrate(made.name, "beta", bandwidth_mib_s=64)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.alice.instances.StopInstance(instance_pb2.StopInstanceRequest(name=made.name))
    assert caught.value.code() is grpc.StatusCode.ABORTED
    error = await refusal(cluster.migrate(made.name, "beta"))
    assert error.reason is Reason.INSTANCE_BUSY
    assert error.metadata["operation"] == moving.name
    await cluster.done(moving)


async def test_the_same_request_id_gives_the_same_operation_over_a_restart_of_the_api(
    cluster: Cluster,
) -> None:
    request = instance_pb2.CreateInstanceRequest(
        parent=PROJECT, instance=cluster.instance("once"), request_id=str(uuid.uuid4())
    )
    first = await cluster.alice.instances.CreateInstance(request)
    await cluster.done(first)
    cluster.mesh.processes["api"].kill()
    cluster.mesh.start("api")
    await cluster.until_up()
    again = await cluster.alice.instances.CreateInstance(request)
    assert again.name == first.name
    listing = instance_pb2.ListInstancesRequest(parent=PROJECT)
    assert len((await cluster.alice.instances.ListInstances(listing)).instances) == 1
    request.instance.display_name = "twice"
    error = await refusal(cluster.alice.instances.CreateInstance(request))
    assert error.reason is Reason.REQUEST_ID_REUSED


async def test_a_delete_supersedes_what_holds_the_instance(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha")
    moving = await cluster.migrate(made.name, "beta", bandwidth_mib_s=4)
    watched = cluster.watch(moving)
    await watched.until(2)
    await cluster.delete(made.name)
    ended = await cluster.ended(moving)
    assert metadata_of(ended).state == Metadata.STATE_CANCELLED
    assert await cluster.keys_left() == set()
    assert not any(cluster.mesh.domains().values())
    assert cluster.mesh.directories() == set()

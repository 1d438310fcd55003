"""Admission: one transaction or nothing, one winner, the same answer for the same request id."""

import asyncio
import uuid

import pytest
from google.protobuf.duration_pb2 import Duration
from remuda.compute.v1 import flavor_pb2, instance_pb2, moving_pb2
from remuda.compute.v1.moving_pb2 import MigrationCheck
from remuda.image.v1 import image_pb2
from remuda.store.v1 import instance_pb2 as records
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId, NetworkId, OperationId, ProjectId
from remuda_core.rpc.status import from_status

from tests.integration.api.conftest import Client, Cluster, Launch, Metadata, Pieces, metadata_of, refusal

Instance = instance_pb2.Instance
Interface = instance_pb2.NetworkInterface


async def test_a_created_instance_has_record_status_name_claim_image_ref_and_operation(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    operation = await alice.instances.CreateInstance(
        pieces.request("web", user_data=b"#!/bin/sh\n", labels={"tier": "front"})
    )
    assert not operation.done
    metadata = metadata_of(operation)
    assert (metadata.action, metadata.state) == ("CreateInstance", Metadata.STATE_PENDING)
    assert metadata.requester == "user/alice"
    record = await cluster.leader.record(operation.name)
    uid, image = record.instance_id, pieces.image.rpartition("/")[2]
    assert metadata.target == f"projects/demo/instances/{uid}"
    assert {
        f"instances/demo/{uid}",
        f"instance_status/{uid}",
        "instance_names/demo/web",
        f"claims/{uid}",
        f"image_refs/{image}/{uid}",
        f"operations/{record.id}",
    } <= await cluster.keys_under()
    kv = await cluster.etcd.get(cluster.keys.instance(ProjectId("demo"), InstanceId(uid)))
    assert kv is not None
    owned = records.InstanceRecord.FromString(kv.value)
    assert (owned.vcpus, owned.memory_mib, owned.disk_bytes) == (1, 64, 2 << 30)
    assert owned.user_data == b"#!/bin/sh\n"
    assert owned.manifest_digest == "ab" * 32
    status = await cluster.leader.status(InstanceId(uid))
    assert (status.state, status.project) == (Instance.STATE_CREATING, "demo")


async def test_the_admitted_request_names_everything_by_uuid_and_keeps_the_user_data_out(
    cluster: Cluster, admin: Client, pieces: Pieces
) -> None:
    host = await cluster.add_host("node-a")
    request = pieces.request("web", image="projects/demo/images/cirros", user_data=b"secret")
    request.host = "hosts/node-a"
    operation = await admin.instances.CreateInstance(request)
    admitted = instance_pb2.CreateInstanceRequest()
    record = await cluster.leader.record(operation.name)
    assert record.request.Unpack(admitted)
    assert admitted.host == f"hosts/{host}"
    assert admitted.instance.image == pieces.image
    assert not admitted.instance.user_data


async def test_a_display_name_is_taken_once_in_a_project(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    answers = await asyncio.gather(
        *(alice.instances.CreateInstance(pieces.request("web")) for _ in range(6)), return_exceptions=True
    )
    admitted = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(admitted) == 1
    error = await refusal(alice.instances.CreateInstance(pieces.request("web")))
    assert error.reason is Reason.ALREADY_EXISTS
    assert error.resource.startswith("projects/demo/instances/")
    assert len(await cluster.keys_under("instances/")) == 1
    assert len(await cluster.keys_under("operations/")) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flavor": "flavors/none"}, Reason.FLAVOR_NOT_FOUND),
        ({"image": "projects/demo/images/none"}, Reason.IMAGE_NOT_FOUND),
        ({"image": f"projects/demo/images/{uuid.uuid4()}"}, Reason.IMAGE_NOT_FOUND),
        (
            {"network_interfaces": [Interface(network="networks/none")]},
            Reason.NETWORK_NOT_FOUND,
        ),
        ({"display_name": str(uuid.uuid4())}, Reason.INVALID_ARGUMENT),
        (
            {"network_interfaces": [Interface(network="networks/net", address="10.9.0.4")]},
            Reason.INVALID_ARGUMENT,
        ),
        (
            {"network_interfaces": [Interface(network="networks/net", address="10.78.0.1")]},
            Reason.INVALID_ARGUMENT,
        ),
    ],
)
async def test_a_launch_that_cannot_be_is_refused_and_leaves_nothing(
    cluster: Cluster, alice: Client, pieces: Pieces, change: dict[str, object], reason: Reason
) -> None:
    before = await cluster.keys_under()
    display_name = str(change.get("display_name", "web"))
    others = {key: value for key, value in change.items() if key != "display_name"}
    error = await refusal(alice.instances.CreateInstance(pieces.request(display_name, **others)))
    assert error.reason is reason
    assert await cluster.keys_under() == before


async def test_an_address_that_has_a_port_is_refused(cluster: Cluster, alice: Client, pieces: Pieces) -> None:
    port = records.PortRecord(instance_id=str(uuid.uuid4()))
    await cluster.etcd.put(cluster.keys.port(NetworkId("net"), "10.78.0.9"), port.SerializeToString())
    wanted = Interface(network="networks/net", address="10.78.0.9")
    error = await refusal(alice.instances.CreateInstance(pieces.request("web", network_interfaces=[wanted])))
    assert error.reason is Reason.ADDRESS_TAKEN
    twice = Interface(network="networks/net", address="10.78.0.10")
    error = await refusal(
        alice.instances.CreateInstance(pieces.request("web", network_interfaces=[twice, twice]))
    )
    assert error.reason is Reason.INVALID_ARGUMENT


async def test_an_image_that_is_not_active_or_needs_more_is_refused(
    cluster: Cluster, admin: Client, alice: Client, pieces: Pieces
) -> None:
    made = await alice.images.CreateImage(
        image_pb2.CreateImageRequest(
            parent="projects/demo",
            image=image_pb2.Image(display_name="raw", format=image_pb2.Image.FORMAT_RAW, file_bytes=5),
        )
    )
    error = await refusal(alice.instances.CreateInstance(pieces.request("web", image=made.name)))
    assert error.reason is Reason.IMAGE_NOT_ACTIVE
    tiny = flavor_pb2.Flavor(vcpus=1, memory_mib=16)
    await admin.flavors.CreateFlavor(flavor_pb2.CreateFlavorRequest(flavor_id="tiny", flavor=tiny))
    error = await refusal(alice.instances.CreateInstance(pieces.request("web", flavor="flavors/tiny")))
    assert error.reason is Reason.INVALID_ARGUMENT
    assert "memory" in error.message
    large = await cluster.add_image(name="large", min_disk_gib=3)
    error = await refusal(alice.instances.CreateInstance(pieces.request("web", image=large)))
    assert (error.reason, error.violations[0].subject) == (Reason.INVALID_ARGUMENT, "instance.flavor")
    assert "needs a disk of 3 GiB" in error.message


async def test_the_architecture_of_the_image_stays_with_the_instance(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    image = await cluster.add_image(name="arm", architecture="aarch64")
    operation = await alice.instances.CreateInstance(pieces.request("web", image=image))
    uid = (await cluster.leader.record(operation.name)).instance_id
    kv = await cluster.etcd.get(cluster.keys.instance(ProjectId("demo"), InstanceId(uid)))
    assert kv is not None
    assert records.InstanceRecord.FromString(kv.value).architecture == "aarch64"


async def test_of_two_conflicting_requests_one_wins_and_the_other_learns_which(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    stop = instance_pb2.StopInstanceRequest(name=web.name)
    move = moving_pb2.LiveMigrateInstanceRequest(name=web.name)
    answers = await asyncio.gather(
        alice.instances.StopInstance(stop),
        alice.instances.LiveMigrateInstance(move),
        alice.instances.StopInstance(stop),
        return_exceptions=True,
    )
    claim = await cluster.etcd.get(cluster.keys.claim(InstanceId(web.uid)))
    assert claim is not None
    winner = f"operations/{records.Claim.FromString(claim.value).operation_id}"
    names = [getattr(answer, "name", "") for answer in answers]
    assert names.count(winner) == 1
    error = await refusal(alice.instances.LiveMigrateInstance(move))
    assert error.reason is Reason.INSTANCE_BUSY
    assert error.metadata["operation"] == winner
    assert len(await cluster.keys_under("operations/")) == 2  # the launch and the winner


async def test_the_same_request_id_gives_the_same_operation_also_concurrently_and_at_another_gateway(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    await cluster.start_gateway()
    other = cluster.client("user/alice;project:demo", at=1)
    request = pieces.request("web")
    request.request_id = str(uuid.uuid4())
    answers = await asyncio.gather(
        *(client.instances.CreateInstance(request) for client in (alice, other, alice, other))
    )
    assert len({answer.name for answer in answers}) == 1
    await cluster.leader.finish(answers[0].name)
    again = await other.instances.CreateInstance(request)
    assert (again.name, again.done) == (answers[0].name, True)
    assert len(await cluster.keys_under("operations/")) == 1


async def test_operation_claim_and_request_id_are_written_by_one_transaction(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    """A gateway that dies leaves all of it or nothing: a repeated request finds it, or does it."""
    request = pieces.request("web")
    request.request_id = str(uuid.uuid4())
    operation = await alice.instances.CreateInstance(request)
    uid = InstanceId((await cluster.leader.record(operation.name)).instance_id)
    keys = cluster.keys
    written = [
        await cluster.etcd.get(key)
        for key in (
            keys.operation(OperationId(operation.name.removeprefix("operations/"))),
            keys.claim(uid),
            keys.instance(ProjectId("demo"), uid),
            keys.instance_status(uid),
            keys.instance_name(ProjectId("demo"), "web"),
            keys.request("user/alice", request.request_id),
        )
    ]
    assert len({kv.create_revision if kv else 0 for kv in written}) == 1


async def test_a_request_id_with_another_body_is_refused_and_belongs_to_one_caller(
    cluster: Cluster, alice: Client, admin: Client, pieces: Pieces
) -> None:
    request = pieces.request("web")
    request.request_id = str(uuid.uuid4())
    await alice.instances.CreateInstance(request)
    request.instance.display_name = "db"
    error = await refusal(alice.instances.CreateInstance(request))
    assert error.reason is Reason.REQUEST_ID_REUSED
    operation = await admin.instances.CreateInstance(request)
    assert metadata_of(operation).requester == "user/root"


async def test_request_records_expire_together(cluster: Cluster, alice: Client, pieces: Pieces) -> None:
    leases = set()
    for name in ("a", "b"):
        request = pieces.request(name)
        request.request_id = str(uuid.uuid4())
        await alice.instances.CreateInstance(request)
        kv = await cluster.etcd.get(cluster.keys.request("user/alice", request.request_id))
        assert kv is not None
        leases.add(kv.lease)
    assert len(leases) == 1
    ttl = await cluster.etcd.lease_ttl(leases.pop())
    assert 24 * 3600 <= ttl <= 25 * 3600


async def test_a_request_lease_that_was_revoked_is_made_again(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    request = pieces.request("a")
    request.request_id = str(uuid.uuid4())
    await alice.instances.CreateInstance(request)
    kv = await cluster.etcd.get(cluster.keys.request("user/alice", request.request_id))
    assert kv is not None
    await cluster.etcd.revoke_lease(kv.lease)
    request = pieces.request("b")
    request.request_id = str(uuid.uuid4())
    operation = await alice.instances.CreateInstance(request)
    assert (await alice.instances.CreateInstance(request)).name == operation.name


async def test_a_resource_made_with_a_request_id_is_answered_with_the_same_etag(
    cluster: Cluster, admin: Client
) -> None:
    request = flavor_pb2.CreateFlavorRequest(
        flavor_id="big",
        flavor=flavor_pb2.Flavor(vcpus=4, memory_mib=4096),
        request_id=str(uuid.uuid4()),
    )
    first = await admin.flavors.CreateFlavor(request)
    assert await admin.flavors.CreateFlavor(request) == first
    assert (await admin.flavors.GetFlavor(flavor_pb2.GetFlavorRequest(name=first.name))) == first
    request.request_id = "not a uuid"
    assert (await refusal(admin.flavors.CreateFlavor(request))).reason is Reason.INVALID_ARGUMENT


async def test_an_etag_that_is_out_of_date_is_refused(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    changed = await alice.instances.UpdateInstance(
        instance_pb2.UpdateInstanceRequest(
            instance=Instance(
                name=web.name,
                display_name="web",
                labels={"a": "b"},
                etag=web.etag,
                flavor=web.flavor,
                image=web.image,
            )
        )
    )
    assert changed.etag != web.etag
    error = await refusal(
        alice.instances.StopInstance(instance_pb2.StopInstanceRequest(name=web.name, etag=web.etag))
    )
    assert error.reason is Reason.ETAG_MISMATCH
    assert error.metadata["etag"] == changed.etag
    operation = await alice.instances.StopInstance(
        instance_pb2.StopInstanceRequest(name=web.name, etag=changed.etag)
    )
    assert not operation.done


async def test_stop_and_start_set_what_the_owner_wants(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    stop = await alice.instances.StopInstance(
        instance_pb2.StopInstanceRequest(name=web.name, grace=Duration(seconds=5))
    )
    await cluster.leader.finish(stop.name, state=Instance.STATE_STOPPED)
    stopped = await fresh_instance(cluster, alice, web.name)
    assert (stopped.intent, stopped.state) == (Instance.INTENT_STOPPED, Instance.STATE_STOPPED)
    await alice.instances.StartInstance(instance_pb2.StartInstanceRequest(name=web.name))
    assert (await fresh_instance(cluster, alice, web.name)).intent == Instance.INTENT_RUNNING


async def test_a_state_that_holds_already_is_a_success_that_is_recorded(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    operation = await alice.instances.StartInstance(instance_pb2.StartInstanceRequest(name=web.name))
    assert operation.done
    found = Instance()
    assert operation.response.Unpack(found)
    assert found.name == web.name
    assert (await cluster.leader.record(operation.name)).done
    assert not await cluster.keys_under("claims/")


async def test_states_that_forbid_an_action_say_so(cluster: Cluster, alice: Client, launch: Launch) -> None:
    off = await launch("off", Instance.STATE_STOPPED)
    error = await refusal(
        alice.instances.LiveMigrateInstance(moving_pb2.LiveMigrateInstanceRequest(name=off.name))
    )
    assert error.reason is Reason.STATE_FORBIDS_ACTION
    paused = await launch("paused", Instance.STATE_PAUSED)
    stop = instance_pb2.StopInstanceRequest(name=paused.name)
    assert (await refusal(alice.instances.StopInstance(stop))).reason is Reason.MEMORY_WOULD_BE_LOST
    stop.discard_memory = True
    assert not (await alice.instances.StopInstance(stop)).done


async def test_delete_supersedes_the_holder_and_a_second_delete_joins_the_first(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    stop = await alice.instances.StopInstance(instance_pb2.StopInstanceRequest(name=web.name))
    request = instance_pb2.DeleteInstanceRequest(name=web.name)
    delete = await alice.instances.DeleteInstance(request)
    record = await cluster.leader.record(delete.name)
    assert f"operations/{record.supersedes}" == stop.name
    claim = await cluster.etcd.get(cluster.keys.claim(InstanceId(web.uid)))
    assert claim is not None
    held = records.Claim.FromString(claim.value)
    assert f"operations/{held.operation_id}" == stop.name
    assert f"operations/{held.successor_id}" == delete.name
    assert await cluster.etcd.get(cluster.keys.cancel(OperationId(held.operation_id))) is not None
    assert (await alice.instances.DeleteInstance(request)).name == delete.name
    await cluster.leader.finish(stop.name, state=Instance.STATE_STOPPED)
    assert (await alice.instances.DeleteInstance(request)).name == delete.name
    error = await refusal(alice.instances.StartInstance(instance_pb2.StartInstanceRequest(name=web.name)))
    assert error.metadata["operation"] == delete.name
    await cluster.leader.remove(delete.name)
    assert (await refusal(alice.instances.DeleteInstance(request))).reason is Reason.INSTANCE_NOT_FOUND
    assert not await cluster.keys_under("image_refs/")


async def test_validate_only_makes_every_check_and_changes_nothing(
    cluster: Cluster, admin: Client, alice: Client, launch: Launch, pieces: Pieces
) -> None:
    web = await launch("web")
    cluster.leader.live.check.candidates.add(
        host="hosts/chosen", probed=True, verdict=MigrationCheck.VERDICT_PASS
    )
    before = await cluster.keys_under()
    request = pieces.request("db")
    request.validate_only = True
    request.request_id = str(uuid.uuid4())
    preview = await alice.instances.CreateInstance(request)
    found = Instance()
    assert (preview.name, preview.done) == ("", True)
    assert preview.response.Unpack(found)
    assert (found.display_name, found.vcpus) == ("db", 1)
    # Where it would go is the operators' business.
    assert metadata_of(preview).placement.considered == 3
    assert not metadata_of(preview).placement.chosen_host
    as_admin = await admin.instances.CreateInstance(request)
    assert metadata_of(as_admin).placement.chosen_host == "hosts/chosen"
    for call in (
        alice.instances.StopInstance(instance_pb2.StopInstanceRequest(name=web.name, validate_only=True)),
        alice.instances.StartInstance(instance_pb2.StartInstanceRequest(name=web.name, validate_only=True)),
        alice.instances.DeleteInstance(instance_pb2.DeleteInstanceRequest(name=web.name, validate_only=True)),
        alice.instances.LiveMigrateInstance(
            moving_pb2.LiveMigrateInstanceRequest(name=web.name, validate_only=True)
        ),
    ):
        assert (await call).done
    assert await cluster.keys_under() == before
    request.instance.display_name = "web"
    assert (await refusal(alice.instances.CreateInstance(request))).reason is Reason.ALREADY_EXISTS


async def test_validate_only_without_a_host_or_without_a_leader_says_so(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    request = pieces.request("db")
    request.validate_only = True
    explanation = cluster.leader.live.explanation
    explanation.chosen_host = ""
    explanation.rejections["ram"] = 3
    error = await refusal(alice.instances.CreateInstance(request))
    assert error.reason is Reason.NO_HOST_FITS
    assert error.metadata["ram"] == "3"
    await cluster.leader.resign()
    error = await refusal(alice.instances.CreateInstance(request))
    assert error.reason is Reason.NO_LEADER
    assert error.retry_after_seconds
    request.validate_only = False
    assert not (await alice.instances.CreateInstance(request)).done


async def test_live_migration_checks_the_asserted_source_and_the_named_target(
    cluster: Cluster, admin: Client, alice: Client, launch: Launch
) -> None:
    a, b = await cluster.add_host("node-a"), await cluster.add_host("node-b")
    web = await launch("web", host=a)

    def request(source: str, target: str) -> moving_pb2.LiveMigrateInstanceRequest:
        return moving_pb2.LiveMigrateInstanceRequest(name=web.name, source_host=source, target_host=target)

    error = await refusal(alice.instances.LiveMigrateInstance(request("hosts/node-b", "")))
    assert error.reason is Reason.SOURCE_HOST_MISMATCH
    error = await refusal(alice.instances.LiveMigrateInstance(request("", "hosts/node-b")))
    assert error.reason is Reason.PERMISSION_DENIED
    error = await refusal(admin.instances.LiveMigrateInstance(request("", "hosts/node-c")))
    assert error.reason is Reason.HOST_NOT_FOUND
    assert (await admin.instances.LiveMigrateInstance(request("", "hosts/node-a"))).done
    operation = await admin.instances.LiveMigrateInstance(request("hosts/node-a", "hosts/node-b"))
    admitted = moving_pb2.LiveMigrateInstanceRequest()
    assert (await cluster.leader.record(operation.name)).request.Unpack(admitted)
    assert (admitted.source_host, admitted.target_host) == (f"hosts/{a}", f"hosts/{b}")


async def test_an_update_renames_and_relabels_and_a_taken_name_is_refused(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    web, db = await launch("web"), await launch("db")

    async def update(name: str, paths: list[str], **fields: object) -> Instance:
        request = instance_pb2.UpdateInstanceRequest(
            instance=Instance(
                **{"name": name, "display_name": "x", "flavor": web.flavor, "image": web.image, **fields}  # type: ignore[arg-type]
            )
        )
        request.update_mask.paths.extend(paths)
        return await alice.instances.UpdateInstance(request)

    labelled = await update(web.name, ["labels"], labels={"tier": "front"})
    assert (labelled.display_name, dict(labelled.labels)) == ("web", {"tier": "front"})
    assert (await update(web.name, ["labels"], labels={"tier": "front"})).etag == labelled.etag
    renamed = await update("projects/demo/instances/web", ["display_name"], display_name="www")
    assert (renamed.uid, dict(renamed.labels)) == (web.uid, {"tier": "front"})
    assert await cluster.keys_under("instance_names/") == {
        "instance_names/demo/www",
        "instance_names/demo/db",
    }
    error = await refusal(update(db.name, ["display_name"], display_name="www"))
    assert error.reason is Reason.ALREADY_EXISTS
    error = await refusal(update(db.name, ["flavor"]))
    assert error.reason is Reason.INVALID_ARGUMENT


async def test_the_failure_of_an_operation_is_told_as_the_leader_gave_it(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    operation = await alice.instances.CreateInstance(pieces.request("web"))
    failure = RemudaError(Reason.NO_HOST_FITS, "none of 3 hosts fits")
    await cluster.leader.finish(operation.name, state=Instance.STATE_FAILED, error=failure)
    record = await cluster.leader.record(operation.name)
    assert from_status(record.error).reason is Reason.NO_HOST_FITS


async def fresh_instance(cluster: Cluster, client: Client, name: str) -> Instance:
    revision = (await cluster.etcd.range_key(cluster.keys.leader)).revision
    return await client.instances.GetInstance(
        instance_pb2.GetInstanceRequest(name=name), metadata=(("remuda-min-revision", str(revision)),)
    )

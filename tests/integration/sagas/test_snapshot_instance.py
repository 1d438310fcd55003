"""SnapshotInstance: what the host may do, what is said afterwards, and how it can fail to come to be.

What holds for every saga, wherever it is interrupted, is in test_every_saga.py.
"""

import asyncio

import pytest
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1.image_pb2 import Image
from remuda.image.v1.source_pb2 import ImageSource
from remuda.store.v1.image_pb2 import ImageRecord, QuotaRecord
from remuda.store.v1.instance_pb2 import EventRecord
from remuda.store.v1.operation_pb2 import OperationRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId, InstanceId, OperationId
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import PAUSED, RUNNING, FakeHost
from remuda_core.testing.snapshots import COUNTS, FakeSnapshots, Snapshotting
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.sagas.new_image import READABLE
from remuda_scheduler.testing.cluster import IMAGE, PROJECT, Cluster
from remuda_scheduler.testing.images import DISK_BYTES, admit_snapshot, image_record, images_of

DONE = OperationMetadata.STATE_DONE
FAILED = OperationMetadata.STATE_FAILED
CANCELLED = OperationMetadata.STATE_CANCELLED
CRASH = ImageSource.CONSISTENCY_CRASH


def snapshots(cluster: Cluster) -> FakeSnapshots:
    return cluster.agents.hosts[cluster.a].snapshots


async def sending(cluster: Cluster) -> None:
    """Until the host is in the middle of it, and stays there."""
    async with asyncio.timeout(60):
        await snapshots(cluster).sending.wait()


def reason(record: OperationRecord) -> Reason:
    return from_status(record.error).reason


async def put_image(cluster: Cluster, record: ImageRecord) -> None:
    revision = await cluster.etcd.put(cluster.keys.image(ImageId(record.id)), record.SerializeToString())
    await cluster.store.images.wait_revision(revision, 10)


async def change_image(
    cluster: Cluster, operation: OperationId, state: "Image.State.ValueType | None"
) -> None:
    """As the api does when somebody deletes it, and the image store when it has removed it (None)."""
    key = cluster.keys.image(ImageId((await cluster.operation(operation)).image_id))
    seen = await cluster.etcd.get(key)
    assert seen is not None
    record = ImageRecord.FromString(seen.value)
    if state is None:
        await cluster.etcd.delete(key)
        return
    record.image.state = state
    await cluster.etcd.put(key, record.SerializeToString())


async def created(cluster: Cluster, instance: InstanceId) -> InstanceEvent:
    found = (await cluster.etcd.range_prefix(cluster.keys.events(instance))).kvs
    events = [EventRecord.FromString(kv.value).event for kv in found]
    (event,) = [event for event in events if event.type == "SNAPSHOT_CREATED"]
    return event


async def nothing_of_it(cluster: Cluster, instance: InstanceId) -> None:
    """The guest goes on, and the image store removes the image."""
    (image,) = await images_of(cluster, instance)
    assert image.image.state == Image.STATE_DELETING
    assert not snapshots(cluster).backups
    assert cluster.domain_on(cluster.a, instance).power == RUNNING
    assert (await cluster.status(instance)).state == Instance.STATE_RUNNING
    await cluster.nothing_is_open()


# --- what it answers ---


async def test_it_answers_with_the_image_and_tells_the_timeline_what_it_took(cluster: Cluster) -> None:
    instance = await cluster.running()
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    image = Image()
    assert record.response.Unpack(image)
    assert (image.name, image.uid) == (f"projects/{PROJECT}/images/{record.image_id}", record.image_id)
    assert image.state == Image.STATE_ACTIVE
    assert image.etag
    assert image.source.counts == COUNTS
    event = await created(cluster, instance)
    assert event.severity == InstanceEvent.SEVERITY_INFO
    for words in ("30 MiB new of 1024 MiB", "64 MiB touched", "40 MiB sent"):
        assert words in event.message
    shown = [one for one in cluster.hub.shown[operation] if one.HasField("snapshot")]
    assert [one.percent for one in shown] == [30, 60]
    assert shown[-1].snapshot == COUNTS


@pytest.mark.parametrize(
    ("quiesce", "consistency", "severity"),
    [
        (SnapshotInstanceRequest.QUIESCE_IF_POSSIBLE, CRASH, InstanceEvent.SEVERITY_WARNING),
        (SnapshotInstanceRequest.QUIESCE_NONE, CRASH, InstanceEvent.SEVERITY_INFO),
        (
            SnapshotInstanceRequest.QUIESCE_REQUIRED,
            ImageSource.CONSISTENCY_OFF,
            InstanceEvent.SEVERITY_INFO,
        ),
    ],
)
async def test_the_timeline_warns_of_an_image_that_is_not_as_consistent_as_was_wished(
    cluster: Cluster,
    quiesce: "SnapshotInstanceRequest.Quiesce.ValueType",
    consistency: "ImageSource.Consistency.ValueType",
    severity: "InstanceEvent.Severity.ValueType",
) -> None:
    instance = await cluster.running()
    snapshots(cluster).consistency = consistency
    operation = await admit_snapshot(cluster, instance, quiesce=quiesce)
    await cluster.lead()
    await cluster.done(operation, DONE)
    event = await created(cluster, instance)
    assert event.severity == severity
    assert ("loss of power" in event.message) == (severity == InstanceEvent.SEVERITY_WARNING)
    (order,) = snapshots(cluster).orders
    assert order.quiesce == quiesce


@pytest.mark.parametrize(
    "state",
    [Instance.STATE_PAUSED, Instance.STATE_SUSPENDED, Instance.STATE_STOPPED],
    ids=Instance.State.Name,
)
async def test_an_instance_stays_what_it_is(cluster: Cluster, state: "Instance.State.ValueType") -> None:
    instance = await cluster.running()
    status = await cluster.status(instance)
    status.state = state
    await cluster.etcd.put(cluster.keys.instance_status(instance), status.SerializeToString())
    cluster.domain_on(cluster.a, instance).power = PAUSED
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    await cluster.done(operation, DONE)
    after = await cluster.status(instance)
    assert (after.state, after.host_id, after.epoch) == (state, status.host_id, status.epoch)
    assert after.observed.power_state == PAUSED


async def test_after_a_move_the_host_that_has_the_guest_makes_it(cluster: Cluster) -> None:
    instance = await cluster.running()
    await cluster.lead()
    request = LiveMigrateInstanceRequest(target_host=f"hosts/{cluster.b}")
    await cluster.done(await cluster.admit("LiveMigrateInstance", instance, request), DONE)
    await cluster.done(await admit_snapshot(cluster, instance), DONE)
    assert snapshots(cluster).begun == 0
    assert cluster.agents.hosts[cluster.b].snapshots.begun == 1


# --- what the host may do ---


async def test_the_grant_fills_one_image_and_reads_the_base_and_the_newest_snapshots_of_this_instance(
    cluster: Cluster,
) -> None:
    instance = await cluster.running()
    earlier = []
    for age in range(READABLE + 3):
        record = image_record(instance, Image.STATE_ACTIVE)
        record.image.create_time.FromSeconds(1_000_000 - age)
        await put_image(cluster, record)
        earlier.append(record.id)
    for other in ("not mine", "not finished", "of another project"):
        record = image_record(InstanceId(other) if other == "not mine" else instance, Image.STATE_ACTIVE)
        if other == "not finished":
            record.image.state = Image.STATE_UPLOADING
        if other == "of another project":
            record.project = "other"
        await put_image(cluster, record)
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    image = (await cluster.done(operation, DONE)).image_id
    (given,) = [one for one in cluster.grants.given if one.operation_id == operation]
    assert (given.host_id, given.writable_image) == (cluster.a, image)
    assert list(given.readable_images) == [IMAGE, *earlier[: READABLE - 1]]
    assert given.byte_limit == 2 * DISK_BYTES
    (order,) = snapshots(cluster).orders
    assert (order.image_id, order.pool, order.manifest_digest) == (image, "local", "00")


async def test_the_host_may_store_what_the_projects_quota_leaves(cluster: Cluster) -> None:
    instance = await cluster.running()
    quota = QuotaRecord(image_stored_bytes=100 << 20)
    await cluster.etcd.put(cluster.keys.quota(PROJECT), quota.SerializeToString())
    await cluster.lead()
    limits = []
    for _ in range(2):
        operation = await admit_snapshot(cluster, instance)
        await cluster.done(operation, DONE)
        limits += [one.byte_limit for one in cluster.grants.given if one.operation_id == operation]
    assert limits == [100 << 20, (100 << 20) - COUNTS.stored_bytes]


async def test_every_attempt_is_granted_anew(cluster: Cluster) -> None:
    instance = await cluster.running()
    tries = 0

    async def lose_store(_: FakeHost, key: StepKey) -> None:
        nonlocal tries
        if key.step == "disk_uploaded" and tries == 0:
            tries += 1
            raise RemudaError(Reason.STORE_UNAVAILABLE, "no replica answers")

    cluster.agents.before = lose_store
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    await cluster.done(operation, DONE)
    expiries = [
        one.expire_time.ToNanoseconds() for one in cluster.grants.given if one.operation_id == operation
    ]
    assert len(expiries) == 2
    assert expiries[0] < expiries[1]


# --- it does not come to be ---


async def test_a_guest_that_cannot_be_frozen_goes_on_and_nothing_is_left(cluster: Cluster) -> None:
    instance = await cluster.running()
    snapshots(cluster).how = Snapshotting.CANNOT_FREEZE
    operation = await admit_snapshot(cluster, instance, quiesce=SnapshotInstanceRequest.QUIESCE_REQUIRED)
    await cluster.lead()
    assert reason(await cluster.done(operation, FAILED)) is Reason.QUIESCE_FAILED
    await nothing_of_it(cluster, instance)


@pytest.mark.parametrize("why", [Reason.QUOTA_EXCEEDED, Reason.GRANT_REFUSED, Reason.DISK_FULL])
async def test_what_the_image_store_refuses_is_the_operations_error(cluster: Cluster, why: Reason) -> None:
    instance = await cluster.running()

    async def refuse(_work: object, _source: object) -> None:
        raise RemudaError(why, "refused")

    snapshots(cluster).commit = refuse
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    assert reason(await cluster.done(operation, FAILED)) is why
    assert snapshots(cluster).begun == 1, "it would be refused again"
    await nothing_of_it(cluster, instance)


async def test_a_cancel_in_the_middle_leaves_no_image_and_no_job(cluster: Cluster) -> None:
    instance = await cluster.running()
    snapshots(cluster).how = Snapshotting.UNTIL_STOPPED
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    await sending(cluster)
    await cluster.cancel(operation)
    await cluster.done(operation, CANCELLED)
    await nothing_of_it(cluster, instance)


async def test_a_delete_in_the_middle_takes_the_instance_and_the_image(cluster: Cluster) -> None:
    instance = await cluster.running()
    snapshots(cluster).how = Snapshotting.UNTIL_STOPPED
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    await sending(cluster)
    deleting = await cluster.supersede_with_delete(instance)
    await cluster.done(operation, CANCELLED)
    await cluster.done(deleting, DONE)
    (image,) = await images_of(cluster, instance)
    assert image.image.state == Image.STATE_DELETING
    await cluster.nothing_is_left()


async def test_a_cancel_after_the_commit_comes_too_late(cluster: Cluster) -> None:
    instance = await cluster.running()

    async def cancel(_: FakeHost, key: StepKey) -> None:
        if key.step == "disk_uploaded" and key.direction == StepKey.DIRECTION_DO:
            await cluster.cancel(operation)
            raise RemudaError(Reason.HYPERVISOR_ERROR, "the answer is lost as well")

    cluster.agents.after = cancel
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    assert record.metadata.cancel_outcome == OperationMetadata.CANCEL_OUTCOME_TOO_LATE
    (image,) = await images_of(cluster, instance)
    assert image.image.state == Image.STATE_ACTIVE


@pytest.mark.parametrize("state", [Image.STATE_DELETING, None], ids=["marked", "removed"])
async def test_an_image_that_is_deleted_while_it_is_made_ends_the_operation(
    cluster: Cluster, state: "Image.State.ValueType | None"
) -> None:
    instance = await cluster.running()
    snapshots(cluster).how = Snapshotting.UNTIL_STOPPED
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    await sending(cluster)
    await change_image(cluster, operation, state)
    snapshots(cluster).finish.set()
    record = await cluster.done(operation, FAILED)
    assert reason(record) is Reason.IMAGE_NOT_FOUND
    assert not snapshots(cluster).backups
    await cluster.nothing_is_open()


async def test_an_image_that_is_deleted_before_it_is_begun_is_never_asked_for(cluster: Cluster) -> None:
    instance = await cluster.running()
    operation = await admit_snapshot(cluster, instance)
    await change_image(cluster, operation, Image.STATE_DELETING)
    await cluster.lead()
    assert reason(await cluster.done(operation, FAILED)) is Reason.IMAGE_NOT_FOUND
    assert snapshots(cluster).begun == 0


async def test_an_instance_on_no_host_has_no_disk(cluster: Cluster) -> None:
    instance = await cluster.running()
    status = await cluster.status(instance)
    status.host_id = ""
    await cluster.etcd.put(cluster.keys.instance_status(instance), status.SerializeToString())
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    assert reason(await cluster.done(operation, FAILED)) is Reason.STATE_FORBIDS_ACTION
    (image,) = await images_of(cluster, instance)
    assert image.image.state == Image.STATE_DELETING


# --- hosts that fall silent ---


async def test_an_agent_that_dies_after_the_commit_is_told_to_clear_up_when_it_is_back(
    cluster: Cluster,
) -> None:
    instance = await cluster.running()
    snapshots(cluster).how = Snapshotting.AGENT_DIES
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert snapshots(cluster).begun == 1
    assert not snapshots(cluster).backups
    await cluster.nothing_is_open()


async def test_a_host_that_stays_silent_after_the_commit_owes_the_clearing_up(cluster: Cluster) -> None:
    instance = await cluster.running()
    host = cluster.agents.hosts[cluster.a]
    host.snapshots.how = Snapshotting.AGENT_DIES

    async def die(found: FakeHost, key: StepKey) -> None:
        if key.step == "disk_uploaded" and key.direction == StepKey.DIRECTION_UNDO:
            found.fall_silent()
            raise RemudaError(Reason.HOST_UNREACHABLE, "silent")

    cluster.agents.before = die
    operation = await admit_snapshot(cluster, instance)
    term = await cluster.lead()
    await cluster.done(operation, DONE)
    assert host.snapshots.backups
    assert await cluster.left("debts")
    cluster.agents.before = cluster.agents.after
    host.come_back()
    assert await term.engine.pay_debts(cluster.a) == 1
    assert not host.snapshots.backups
    await cluster.nothing_is_open()


async def test_a_host_that_falls_silent_before_it_owes_the_undo_and_cannot_finish_the_image(
    cluster: Cluster,
) -> None:
    """The host lives on without us: its job goes on, and comes too late."""
    instance = await cluster.running()
    host = cluster.agents.hosts[cluster.a]
    host.snapshots.how = Snapshotting.UNTIL_STOPPED
    operation = await admit_snapshot(cluster, instance)
    term = await cluster.lead()
    await sending(cluster)
    host.fall_silent()
    await cluster.cancel(operation)
    await cluster.done(operation, CANCELLED)
    (image,) = await images_of(cluster, instance)
    assert image.image.state == Image.STATE_DELETING
    assert host.snapshots.backups
    host.snapshots.finish.set()

    async def over() -> bool:
        return not host.snapshots.backups

    await wait_for(over, timeout=30)
    assert [one.image.state for one in await images_of(cluster, instance)] == [Image.STATE_DELETING]
    host.come_back()
    assert await term.engine.pay_debts(cluster.a) == 1
    await nothing_of_it(cluster, instance)


async def test_a_host_that_never_answers_fails_it_after_the_patience(cluster: Cluster) -> None:
    instance = await cluster.running()
    host = cluster.agents.hosts[cluster.a]
    operation = await admit_snapshot(cluster, instance)
    host.fall_silent()
    term = await cluster.lead()
    assert reason(await cluster.done(operation, FAILED)) is Reason.HOST_UNREACHABLE
    host.come_back()
    await term.engine.pay_debts(cluster.a)
    await nothing_of_it(cluster, instance)


async def test_a_new_leader_joins_the_upload_that_goes_on(cluster: Cluster) -> None:
    instance = await cluster.running()
    snapshots(cluster).how = Snapshotting.UNTIL_STOPPED
    operation = await admit_snapshot(cluster, instance)
    await cluster.lead()
    await sending(cluster)
    await cluster.close()
    await cluster.lead()

    async def joined() -> bool:
        return len(snapshots(cluster).orders) == 2

    await wait_for(joined, timeout=30)
    snapshots(cluster).finish.set()
    await cluster.done(operation, DONE)
    assert snapshots(cluster).begun == 1

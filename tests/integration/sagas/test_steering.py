"""Commands to a migration that runs: to the host that holds its job, and back with what came of them."""

import asyncio
from typing import Any

import pytest
from google.rpc import code_pb2
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.migration_pb2 import (
    CommandResult,
    ControlMigrationRequest,
    Migration,
    MigrationProgress,
    PauseAndFinish,
    SetBandwidth,
    SwitchToPostCopy,
)
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.store.v1.instance_pb2 import MigrationRecord
from remuda_core.errors import Reason
from remuda_core.ids import InstanceId, OperationId
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import Migrating
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.testing.cluster import Cluster

DONE, CANCELLED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_CANCELLED
APPLIED, REFUSED = CommandResult.EFFECT_APPLIED, CommandResult.EFFECT_REFUSED
SECONDS = 10.0


def set_bandwidth(command_id: str, mib_s: int = 2) -> ControlMigrationRequest:
    return ControlMigrationRequest(command_id=command_id, set_bandwidth=SetBandwidth(mib_per_second=mib_s))


def finish(command_id: str) -> ControlMigrationRequest:
    return ControlMigrationRequest(command_id=command_id, pause_and_finish=PauseAndFinish())


async def moving(cluster: Cluster, **fields: Any) -> tuple[InstanceId, OperationId]:
    """A copy that goes on and on from A to B."""
    instance = await cluster.running()
    cluster.agents.hosts[cluster.a].migrating = Migrating.UNTIL_CANCELLED
    request = LiveMigrateInstanceRequest(target_host=f"hosts/{cluster.b}", **fields)
    operation = await cluster.admit("LiveMigrateInstance", instance, request)
    await cluster.lead()
    await wait_for(lambda: cluster.controls.desk(operation).attended, timeout=SECONDS)
    return instance, operation


async def ask(cluster: Cluster, operation: OperationId, command: ControlMigrationRequest) -> CommandResult:
    async with asyncio.timeout(SECONDS):
        return await cluster.controls.desk(operation).ask(command)


async def migration_of(cluster: Cluster, instance: InstanceId) -> Migration:
    (kv,) = (await cluster.etcd.range_prefix(f"{cluster.keys.migrations}{instance}/")).kvs
    return MigrationRecord.FromString(kv.value).migration


async def test_a_command_reaches_the_source_and_stands_in_the_timeline(cluster: Cluster) -> None:
    instance, operation = await moving(cluster)
    result = await ask(cluster, operation, set_bandwidth("one"))
    assert (result.command_id, result.effect) == ("one", APPLIED)
    assert result.phase == MigrationProgress.PHASE_MEMORY
    await ask(cluster, operation, finish("two"))
    await cluster.done(operation, DONE)
    timeline = (await migration_of(cluster, instance)).timeline
    assert [one.type for one in timeline] == [
        "JOB_STARTED",
        "COMMAND_APPLIED",
        "COMMAND_APPLIED",
        "SOURCE_PAUSED",
        "TARGET_RESUMED",
        "SOURCE_CLEANED",
        "TARGET_DEFINED",
    ]
    assert [one.detail for one in timeline if one.detail] == [
        "set_bandwidth is in force",
        "pause_and_finish is in force",
    ]
    assert timeline[1].host == f"hosts/{cluster.a}"
    assert (await cluster.events(instance)).count("COMMAND_APPLIED") == 2


async def test_the_same_command_id_is_answered_twice_and_carried_out_once(cluster: Cluster) -> None:
    instance, operation = await moving(cluster)
    first = await ask(cluster, operation, set_bandwidth("one"))
    assert await ask(cluster, operation, set_bandwidth("one")) == first
    assert len(cluster.agents.hosts[cluster.a].obedience.log) == 1
    await ask(cluster, operation, finish("two"))
    await cluster.done(operation, DONE)
    assert (await cluster.events(instance)).count("COMMAND_APPLIED") == 2


async def test_what_the_host_refuses_is_told_with_its_reason_and_changes_nothing(cluster: Cluster) -> None:
    _, operation = await moving(cluster)
    command = ControlMigrationRequest(command_id="one", switch_to_post_copy=SwitchToPostCopy())
    result = await ask(cluster, operation, command)
    assert result.effect == REFUSED
    assert from_status(result.error).reason is Reason.COMMAND_REFUSED
    await cluster.cancel(operation)
    await cluster.done(operation, CANCELLED)


async def test_post_copy_may_be_commanded_where_the_request_allowed_it(cluster: Cluster) -> None:
    _, operation = await moving(cluster, allow_post_copy=True)
    command = ControlMigrationRequest(command_id="one", switch_to_post_copy=SwitchToPostCopy())
    assert (await ask(cluster, operation, command)).effect == APPLIED
    assert cluster.agents.starts[-1].policy.allow_post_copy
    await cluster.done(operation, DONE)


async def test_a_command_whose_answer_was_lost_is_sent_again_when_the_source_is_back(
    cluster: Cluster,
) -> None:
    _, operation = await moving(cluster)
    source = cluster.agents.hosts[cluster.a]
    source.obedience.deaf_for = 1
    asking = asyncio.create_task(ask(cluster, operation, set_bandwidth("one")))
    await wait_for(lambda: source.obedience.log, timeout=SECONDS)
    assert not asking.done()
    # The stream breaks, and the next one joins the same job.
    source.cut_streams()
    assert (await asking).effect == APPLIED
    assert [one.command_id for one in source.obedience.log] == ["one", "one"]
    assert cluster.agents.jobs_started == 1
    await ask(cluster, operation, finish("two"))
    await cluster.done(operation, DONE)


async def test_the_next_leader_passes_the_same_command_on_when_it_is_asked_again(cluster: Cluster) -> None:
    instance, operation = await moving(cluster)
    source = cluster.agents.hosts[cluster.a]
    source.obedience.deaf_for = 1
    asking = asyncio.create_task(cluster.controls.desk(operation).ask(set_bandwidth("one")))
    await wait_for(lambda: source.obedience.log, timeout=SECONDS)
    await cluster.close()
    cluster.controls.end_all()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await cluster.lead()
    assert (await ask(cluster, operation, set_bandwidth("one"))).effect == APPLIED
    await ask(cluster, operation, finish("two"))
    await cluster.done(operation, DONE)
    assert (await cluster.events(instance)).count("COMMAND_APPLIED") == 2


async def test_what_has_no_answer_when_the_copy_ends_is_refused(cluster: Cluster) -> None:
    _, operation = await moving(cluster)
    source = cluster.agents.hosts[cluster.a]
    source.obedience.deaf_for = 1
    asking = asyncio.create_task(ask(cluster, operation, set_bandwidth("one")))
    await wait_for(lambda: source.obedience.log, timeout=SECONDS)
    await cluster.cancel(operation)
    result = await asking
    assert (result.effect, result.phase) == (REFUSED, MigrationProgress.PHASE_FINISHING)
    assert result.error.code == code_pb2.FAILED_PRECONDITION
    await cluster.done(operation, CANCELLED)


async def test_a_cancelled_copy_leaves_the_guest_at_the_source(cluster: Cluster) -> None:
    instance, operation = await moving(cluster)
    await ask(cluster, operation, set_bandwidth("one"))
    await cluster.cancel(operation)
    await cluster.done(operation, CANCELLED)
    assert (await cluster.status(instance)).host_id == cluster.a
    assert (await cluster.status(instance)).state == Instance.STATE_RUNNING
    assert cluster.directory(cluster.b, instance) is None

"""Live migration between fake hosts: shared and local disks, live progress, paused guests, failures."""

from google.protobuf.duration_pb2 import Duration
from remuda.compute.v1 import instance_pb2, moving_pb2
from remuda.compute.v1.migration_pb2 import Migration, MigrationProgress
from remuda_core.errors import Reason

from tests.integration.mesh.conftest import Cluster, Instance, Metadata, metadata_of
from tests.integration.mesh.processes import GUEST_MIB

MIB = 1 << 20
RUNNING, PAUSED = Instance.STATE_RUNNING, Instance.STATE_PAUSED
SLOW_MIB_S = 16
"""A guest of 64 MiB takes four seconds, and its 64 MiB of local disks four more: no phase goes unseen."""


async def test_a_guest_on_shared_storage_moves_with_live_progress(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha", pool="shared")
    watched = cluster.watch(await cluster.migrate(made.name, "beta", bandwidth_mib_s=SLOW_MIB_S))
    ended = await watched.end()
    assert not ended.HasField("error"), ended.error.message
    moved = await cluster.get(made.name)
    assert (moved.state, moved.host, moved.epoch) == (RUNNING, cluster.host("beta"), made.epoch + 1)
    assert moved.network_interfaces == made.network_interfaces
    domains = cluster.mesh.domains()
    assert (domains["alpha"], domains["beta"]) == (set(), {made.uid})
    assert cluster.mesh.directories() == {f"shared/{made.uid}"}
    assert len(watched.migrations) >= 4
    assert {one.phase for one in watched.migrations} >= {MigrationProgress.PHASE_MEMORY}
    assert watched.migrations[0].memory_total_bytes == GUEST_MIB * MIB
    assert all(one.disk_total_bytes == 0 for one in watched.migrations)
    assert watched.percents == sorted(watched.percents)
    assert max(watched.percents) > 50
    record = await cluster.migration(ended)
    assert (record.kind, record.state) == (Migration.KIND_LIVE_SHARED, Migration.STATE_DONE)
    assert record.HasField("downtime_ms")
    assert [(one.type, cluster.host_name(one.host)) for one in record.timeline] == [
        ("JOB_STARTED", "alpha"),
        ("SOURCE_PAUSED", "alpha"),
        ("TARGET_RESUMED", "beta"),
        ("SOURCE_CLEANED", "alpha"),
        ("TARGET_DEFINED", "beta"),
    ]


async def test_local_disks_are_copied_and_leave_the_source(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha")
    watched = cluster.watch(await cluster.migrate(made.name, "gamma", bandwidth_mib_s=SLOW_MIB_S))
    ended = await watched.end()
    assert not ended.HasField("error"), ended.error.message
    moved = await cluster.get(made.name)
    assert (moved.state, moved.host, moved.pool) == (RUNNING, cluster.host("gamma"), "local")
    assert cluster.mesh.directories() == {f"gamma/{made.uid}"}
    assert {one.phase for one in watched.migrations} >= {
        MigrationProgress.PHASE_DISKS,
        MigrationProgress.PHASE_MEMORY,
    }
    record = await cluster.migration(ended)
    assert (record.kind, record.disk_bytes) == (Migration.KIND_LIVE_BLOCK, 64 * MIB)
    # And it can be started there later: the definition went with it.
    stop = instance_pb2.StopInstanceRequest(name=made.name, force=True)
    await cluster.done(await cluster.alice.instances.StopInstance(stop))
    start = instance_pb2.StartInstanceRequest(name=made.name)
    await cluster.done(await cluster.alice.instances.StartInstance(start))


async def test_the_scheduler_chooses_a_target_when_none_is_named(cluster: Cluster) -> None:
    made = await cluster.launch("web", pool="shared", host="alpha")
    await cluster.done(await cluster.migrate(made.name))
    # Only beta mounts the same storage.
    assert (await cluster.get(made.name)).host == cluster.host("beta")


async def test_an_asserted_source_that_is_wrong_is_refused(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha")
    request = {"source_host": cluster.host("beta")}
    error = await cluster.failure_or_refusal(cluster.migrate(made.name, "gamma", **request))
    assert error.reason is Reason.SOURCE_HOST_MISMATCH
    assert (await cluster.get(made.name)).host == cluster.host("alpha")


async def test_a_paused_guest_stays_paused(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha", pool="shared")
    cluster.mesh.act("alpha", "pause", made.uid)
    await cluster.until_instance(made.name, PAUSED)
    await cluster.done(await cluster.migrate(made.name, "beta"))
    moved = await cluster.get(made.name)
    assert (moved.state, moved.host) == (PAUSED, cluster.host("beta"))
    assert moved.observed.power_state == Instance.POWER_STATE_PAUSED


async def test_a_cancel_while_it_copies_leaves_the_guest_at_the_source_and_nothing_at_the_target(
    cluster: Cluster,
) -> None:
    made = await cluster.launch("web", host="alpha")
    watched = cluster.watch(await cluster.migrate(made.name, "gamma", bandwidth_mib_s=1))
    await watched.until(2)
    await cluster.cancel(watched.name)
    ended = await watched.end()
    metadata = metadata_of(ended)
    assert metadata.state == Metadata.STATE_CANCELLED
    assert metadata.cancel_outcome == Metadata.CANCEL_OUTCOME_CANCELLED
    found = await cluster.get(made.name)
    assert (found.state, found.host, found.epoch) == (RUNNING, cluster.host("alpha"), made.epoch)
    assert cluster.mesh.domains()["gamma"] == set()
    assert cluster.mesh.directories() == {f"alpha/{made.uid}"}
    assert (await cluster.migration(ended)).state == Migration.STATE_CANCELLED
    await cluster.done(await cluster.migrate(made.name, "gamma"))


async def test_a_migration_that_takes_too_long_is_given_up_by_its_source(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha", pool="shared")
    operation = await cluster.migrate(made.name, "beta", bandwidth_mib_s=2, timeout=Duration(seconds=1))
    error = await cluster.failure(operation)
    assert error.reason is Reason.MIGRATION_TIMEOUT
    found = await cluster.get(made.name)
    assert (found.state, found.host) == (RUNNING, cluster.host("alpha"))
    assert cluster.mesh.domains()["beta"] == set()


async def test_a_migration_that_takes_too_long_may_pause_the_guest_to_end(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha", pool="shared")
    operation = await cluster.migrate(
        made.name,
        "beta",
        bandwidth_mib_s=2,
        timeout=Duration(seconds=1),
        on_timeout=moving_pb2.LiveMigrateInstanceRequest.ON_TIMEOUT_PAUSE,
    )
    await cluster.done(operation)
    found = await cluster.get(made.name)
    # It was paused for the sake of the migration, and goes on there.
    assert (found.state, found.host) == (RUNNING, cluster.host("beta"))
    assert found.observed.power_state == Instance.POWER_STATE_RUNNING


async def test_a_guest_that_shuts_itself_down_on_the_way_is_stopped_at_the_source(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha", pool="shared")
    watched = cluster.watch(await cluster.migrate(made.name, "beta", bandwidth_mib_s=1))
    await watched.until(2)
    cluster.mesh.act("alpha", "shutdown", made.uid)
    ended = await watched.end()
    assert ended.HasField("error")
    found = await cluster.get(made.name)
    assert (found.state, found.host) == (Instance.STATE_STOPPED, cluster.host("alpha"))
    assert cluster.mesh.domains()["beta"] == set()

"""Moves wait for their turn: limits, order, cancel, a change of the leader."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest, MigrationCheck
from remuda.compute.v1.operation_pb2 import OperationMetadata, QueueProgress
from remuda_core.errors import Reason
from remuda_core.ids import HostId, InstanceId, OperationId
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import Migrating
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.testing.cluster import FAST, Cluster
from remuda_scheduler.turns.queue import Limits

DONE, CANCELLED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_CANCELLED
SECONDS = 15.0
MAINTENANCE = LiveMigrateInstanceRequest.PRIORITY_MAINTENANCE


class Traffic:
    """Instances on A, whose copies go on and on until the test lets them end."""

    def __init__(self, cluster: Cluster, limits: Limits) -> None:
        self.cluster = cluster
        cluster.limits = limits

    async def instances(self, count: int) -> list[InstanceId]:
        made = [await self.cluster.running() for _ in range(count)]
        self.cluster.agents.hosts[self.cluster.a].migrating = Migrating.UNTIL_CANCELLED
        return made

    async def move(self, instance: InstanceId, target: HostId | None = None, **fields: Any) -> OperationId:
        request = LiveMigrateInstanceRequest(target_host=f"hosts/{target or self.cluster.b}", **fields)
        return await self.cluster.admit("LiveMigrateInstance", instance, request)

    async def moving(self, operation: OperationId) -> None:
        await wait_for(
            lambda: self.cluster.controls.desk(operation).attended,
            timeout=SECONDS,
            last_status=lambda: self.cluster.hub.shown.get(operation),
        )

    async def waits(self, operation: OperationId, position: int) -> QueueProgress:
        def placed() -> QueueProgress | None:
            shown = [one.queue for one in self.cluster.hub.shown.get(operation, ()) if one.HasField("queue")]
            return shown[-1] if shown and shown[-1].position == position else None

        return await wait_for(
            placed, timeout=SECONDS, last_status=lambda: self.cluster.hub.shown.get(operation)
        )


async def test_a_third_move_waits_until_one_of_two_is_over_and_says_for_what(cluster: Cluster) -> None:
    traffic = Traffic(cluster, Limits(outgoing_per_host=2, incoming_per_host=0))
    instances = await traffic.instances(4)
    await cluster.lead()
    operations = []
    for position, instance in enumerate(instances):
        operations.append(await traffic.move(instance))
        if position < 2:
            await traffic.moving(operations[-1])
        else:
            await traffic.waits(operations[-1], position - 1)
    first, _, third, fourth = operations
    seen = await traffic.waits(fourth, 2)
    assert (seen.limit, seen.allowed) == (f"outgoing of hosts/{cluster.a}", 2)
    assert (await cluster.operation(third)).metadata.phase == "capacity_reserved"
    assert len(cluster.agents.starts) == 2
    await cluster.cancel(first)
    await cluster.done(first, CANCELLED)
    await traffic.moving(third)
    await traffic.waits(fourth, 1)
    cluster.agents.hosts[cluster.a].obedience.may_finish.set()
    for operation in operations[1:]:
        await cluster.done(operation, DONE)


async def test_what_somebody_asked_for_goes_before_maintenance(cluster: Cluster) -> None:
    traffic = Traffic(cluster, Limits(outgoing_per_host=1))
    one, two, three = await traffic.instances(3)
    await cluster.lead()
    running = await traffic.move(one)
    await traffic.moving(running)
    drain = await traffic.move(two, priority=MAINTENANCE)
    await traffic.waits(drain, 1)
    asked = await traffic.move(three)
    await traffic.waits(asked, 1)
    await traffic.waits(drain, 2)
    await cluster.cancel(running)
    await traffic.moving(asked)
    assert not cluster.controls.desk(drain).attended
    for operation in (asked, drain):
        await cluster.cancel(operation)
        await cluster.done(operation, CANCELLED)


async def test_a_move_is_cancelled_while_it_waits_and_leaves_nothing(cluster: Cluster) -> None:
    traffic = Traffic(cluster, Limits(cluster=1))
    one, two = await traffic.instances(2)
    await cluster.lead()
    running = await traffic.move(one)
    await traffic.moving(running)
    waiting = await traffic.move(two, cluster.c)
    assert (await traffic.waits(waiting, 1)).limit == "cluster"
    await cluster.cancel(waiting)
    await cluster.done(waiting, CANCELLED)
    assert (await cluster.status(two)).host_id == cluster.a
    assert cluster.directory(cluster.c, two) is None
    await cluster.cancel(running)
    await cluster.done(running, CANCELLED)
    await cluster.nothing_is_open()


async def test_the_next_leader_finds_the_queue_as_it_was(cluster: Cluster) -> None:
    traffic = Traffic(cluster, Limits(incoming_per_host=1))
    one, two, three = await traffic.instances(3)
    await cluster.lead()
    running = await traffic.move(one)
    await traffic.moving(running)
    second = await traffic.move(two)
    await traffic.waits(second, 1)
    third = await traffic.move(three)
    await traffic.waits(third, 2)
    await cluster.close()
    cluster.hub.shown.clear()
    await cluster.lead()
    await traffic.moving(running)
    assert (await traffic.waits(third, 2)).limit == f"incoming of hosts/{cluster.b}"
    assert cluster.agents.jobs_started == 1
    cluster.agents.hosts[cluster.a].obedience.may_finish.set()
    for operation in (running, second, third):
        await cluster.done(operation, DONE)


async def test_a_move_whose_time_is_up_before_its_turn_fails_untouched(cluster: Cluster) -> None:
    traffic = Traffic(cluster, Limits(link=1))
    one, two = await traffic.instances(2)
    await cluster.lead()
    running = await traffic.move(one)
    await traffic.moving(running)
    short = Duration()
    short.FromTimedelta(timedelta(seconds=0.5))
    late = await traffic.move(two, timeout=short)
    record = await cluster.done(late, OperationMetadata.STATE_FAILED)
    error = from_status(record.error)
    assert error.reason is Reason.MIGRATION_TIMEOUT
    assert "waited for its turn (link)" in error.message
    assert len(cluster.agents.starts) == 1
    await cluster.cancel(running)
    await cluster.done(running, CANCELLED)


async def test_moves_that_are_admitted_together_do_not_pass_a_limit_together(cluster: Cluster) -> None:
    traffic = Traffic(cluster, Limits(outgoing_per_host=1))
    operations = [await traffic.move(instance) for instance in await traffic.instances(5)]
    most = 0

    async def count(*_: object) -> None:
        nonlocal most
        held = [entry for entry in cluster.store.journals.items() if entry.value.reservations]
        most = max(most, len(held))

    cluster.agents.before = count
    cluster.agents.hosts[cluster.a].obedience.may_finish.set()
    await cluster.lead()
    for operation in operations:
        await cluster.done(operation, DONE)
    assert most == 1


async def test_a_move_that_waited_long_is_checked_again_before_it_begins(cluster: Cluster) -> None:
    cluster.timing = replace(FAST, preflight_valid=0.0)
    traffic = Traffic(cluster, Limits(outgoing_per_host=1))
    one, two, three = await traffic.instances(3)
    await cluster.lead()
    running = await traffic.move(one)
    await traffic.moving(running)
    broken = await traffic.move(two)
    await traffic.waits(broken, 1)
    whole = await traffic.move(three, cluster.c)
    await traffic.waits(whole, 2)
    # Any wait was too long, so that the test need not wait for a clock.
    cluster.probes.sights[cluster.b].available_bytes = 0
    cluster.agents.hosts[cluster.a].obedience.may_finish.set()
    error = from_status((await cluster.done(broken, OperationMetadata.STATE_FAILED)).error)
    assert error.reason is Reason.PREFLIGHT_FAILED
    assert [one.subject for one in error.violations] == [f"hosts/{cluster.b}/STORAGE"]
    kept = (await cluster.operation(broken)).metadata.preflight
    assert kept.verdict == MigrationCheck.VERDICT_FAIL
    assert (await cluster.status(two)).host_id == cluster.a
    assert cluster.directory(cluster.b, two) is None
    await cluster.done(whole, DONE)
    assert (await cluster.status(three)).host_id == cluster.c


async def test_a_target_that_broke_during_the_wait_gives_way_to_the_next(cluster: Cluster) -> None:
    cluster.timing = replace(FAST, preflight_valid=0.0)
    traffic = Traffic(cluster, Limits(outgoing_per_host=1))
    one, two = await traffic.instances(2)
    await cluster.lead()
    running = await traffic.move(one, cluster.c)
    await traffic.moving(running)
    free = await cluster.admit("LiveMigrateInstance", two, LiveMigrateInstanceRequest())
    await traffic.waits(free, 1)
    cluster.probes.sights[cluster.b].bridges.clear()
    cluster.agents.hosts[cluster.a].obedience.may_finish.set()
    record = await cluster.done(free, DONE)
    assert (await cluster.status(two)).host_id == cluster.c
    (why,) = [one for one in record.metadata.placement.hosts if one.host == f"hosts/{cluster.b}"]
    assert "NETWORK" in why.reason
    assert [start.shared_disks for start in cluster.agents.starts] == [False, False]


async def test_a_move_whose_turn_comes_soon_is_not_checked_again(cluster: Cluster) -> None:
    traffic = Traffic(cluster, Limits(outgoing_per_host=1))
    one, two = await traffic.instances(2)
    await cluster.lead()
    running = await traffic.move(one)
    await traffic.moving(running)
    waiting = await traffic.move(two)
    await traffic.waits(waiting, 1)
    asked = list(cluster.probes.log)
    cluster.agents.hosts[cluster.a].obedience.may_finish.set()
    await cluster.done(waiting, DONE)
    assert cluster.probes.log == asked

"""The engine: one leader at a time, orders only in its name, nothing stuck for ever."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from remuda.agent.v1.common_pb2 import LeaderRef, StepKey
from remuda.compute.v1.instance_pb2 import DeleteInstanceRequest, Instance, StopInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationMetadata, OperationStep
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.ids import OperationId
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import FakeHost
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.engine.saga import AlreadyDone, Commit, Ending
from remuda_scheduler.events import KEPT
from remuda_scheduler.sagas.registry import SAGAS
from remuda_scheduler.testing.cluster import Cluster

DONE, FAILED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_FAILED


async def test_an_action_of_a_newer_version_fails_and_releases_the_instance(cluster: Cluster) -> None:
    instance = await cluster.running()
    operation = await cluster.admit("ResizeInstance", instance, StopInstanceRequest())
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.UNIMPLEMENTED
    assert (await cluster.status(instance)).state == Instance.STATE_RUNNING
    await cluster.nothing_is_open()


async def test_every_host_of_an_operation_knows_the_new_leader_before_the_operation_moves(
    cluster: Cluster,
) -> None:
    inside = asyncio.Event()

    async def hang(_: FakeHost, key: StepKey) -> None:
        if key.step == "disks_prepared":
            inside.set()
            await asyncio.Event().wait()

    cluster.agents.before = hang
    _, operation = await cluster.launch()
    await cluster.lead()
    await asyncio.wait_for(inside.wait(), 60)
    await cluster.close()

    host = cluster.agents.hosts[cluster.a]
    host.fall_silent()
    cluster.timing = type(cluster.timing)(patience=10.0, first_pause=0.01, longest_pause=0.02)
    term = await cluster.lead()
    before = await cluster.etcd.get(cluster.keys.journal(operation))
    await asyncio.sleep(0.2)
    assert await cluster.etcd.get(cluster.keys.journal(operation)) == before
    cluster.agents.before = type(cluster.agents)().before
    host.come_back()
    await cluster.done(operation, DONE)
    assert host.leader == term.leadership.epoch


async def test_a_leader_whose_term_is_over_cannot_order_anything(cluster: Cluster) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()
    orders = []

    async def hold(_: FakeHost, key: StepKey) -> None:
        orders.append(key.leader.epoch)
        if not inside.is_set():
            inside.set()
            await go_on.wait()

    cluster.agents.after = hold
    instance, operation = await cluster.launch()
    old = await cluster.lead()
    await asyncio.wait_for(inside.wait(), 60)
    # As after a pause of the process: its lease is gone and it does not know.
    await cluster.etcd.delete(cluster.keys.leader)
    new = await cluster.lead()
    await cluster.done(operation, DONE)
    go_on.set()
    await asyncio.wait_for(asyncio.gather(old.task, return_exceptions=True), 60)
    await old.inner.resign()
    assert orders[1:] == [new.leadership.epoch] * (len(orders) - 1)
    assert len(cluster.agents.hosts[cluster.a].domains) == 1
    assert (await cluster.status(instance)).state == Instance.STATE_RUNNING


async def test_a_host_refuses_the_order_of_an_older_leader(cluster: Cluster) -> None:
    term = await cluster.lead()
    await cluster.agents.fence(cluster.a, LeaderRef(epoch=term.leadership.epoch + 100))
    _, operation = await cluster.launch(host=f"hosts/{cluster.a}")
    record = await cluster.ended(operation)
    assert from_status(record.error).reason is Reason.STALE_LEADER


async def test_an_instance_keeps_its_last_two_hundred_events(cluster: Cluster) -> None:
    instance = await cluster.running()
    status = await cluster.status(instance)
    status.last_event = KEPT
    await cluster.etcd.put(cluster.keys.instance_status(instance), status.SerializeToString())
    assert await cluster.events(instance) == ["OPERATION_DONE"]
    await cluster.lead()
    operation = await cluster.admit("StopInstance", instance, StopInstanceRequest())
    await cluster.done(operation, DONE)
    found = (await cluster.etcd.range_prefix(cluster.keys.events(instance))).kvs
    assert [kv.key.rpartition("/")[2] for kv in found] == [f"{KEPT + 1:012d}"]


async def test_a_forced_stop_is_an_event_of_its_own(cluster: Cluster) -> None:
    instance = await cluster.running()
    operation = await cluster.admit("StopInstance", instance, StopInstanceRequest(force=True))
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert "GUEST_FORCED_OFF" in await cluster.events(instance)


async def test_a_stop_that_fails_leaves_the_state_to_observation(cluster: Cluster) -> None:
    instance = await cluster.running()
    operation = await cluster.admit("StopInstance", instance, StopInstanceRequest())
    cluster.agents.hosts[cluster.a].fall_silent()
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.HOST_UNREACHABLE
    assert (await cluster.status(instance)).state == Instance.STATE_RUNNING
    await cluster.nothing_is_open()


async def test_many_operations_run_side_by_side(cluster: Cluster) -> None:
    """One that waits holds up no other."""
    stuck = asyncio.Event()

    async def hold_first(_: FakeHost, key: StepKey) -> None:
        if key.operation_id == first:
            await stuck.wait()

    cluster.agents.before = hold_first
    _, first = await cluster.launch(name="first")
    await cluster.lead()
    others = [await cluster.launch(name=f"vm-{number}") for number in range(5)]
    for instance, operation in others:
        await cluster.done(operation, DONE)
        await cluster.done(await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest()), DONE)
    assert not (await cluster.operation(first)).done
    stuck.set()
    await cluster.done(first, DONE)


async def test_an_operation_that_breaks_is_tried_again_and_stops_no_other(cluster: Cluster) -> None:
    broken = await cluster.launch(name="broken")
    seen = await cluster.etcd.get(cluster.keys.operation(broken[1]))
    assert seen is not None
    await cluster.etcd.put(cluster.keys.journal(broken[1]), b"\xff\xff not a journal")
    await cluster.lead()
    _, other = await cluster.launch(name="other")
    await cluster.done(other, DONE)
    assert not (await cluster.operation(broken[1])).done
    await cluster.etcd.delete(cluster.keys.journal(broken[1]))

    async def over() -> bool:
        return (await cluster.operation(broken[1])).done

    await wait_for(over, timeout=60)


TOO_MUCH = "x" * (3 << 19)
"""etcd's limit for a request, in bytes."""


def with_step(cluster: Cluster, action: str, name: str, do: Callable[[Any], Awaitable[None]]) -> None:
    saga = SAGAS[action]
    steps = tuple(dataclasses.replace(step, do=do) if step.name == name else step for step in saga.steps)
    cluster.sagas = {**SAGAS, action: dataclasses.replace(saga, steps=steps)}


async def test_what_etcd_will_never_take_ends_the_operation_and_undoes_it(cluster: Cluster) -> None:
    step = SAGAS["CreateInstance"].step("domain_defined")

    async def grow(run: Any) -> None:
        await step.do(run)
        run.state.machine_type = TOO_MUCH

    with_step(cluster, "CreateInstance", step.name, grow)
    instance, operation = await cluster.launch()
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.REQUEST_TOO_LARGE
    assert (await cluster.status(instance)).state == Instance.STATE_FAILED
    await cluster.nothing_is_left()


async def test_an_operation_that_cannot_even_begin_for_its_size_releases_the_instance(
    cluster: Cluster,
) -> None:
    instance = await cluster.running()
    saga = SAGAS["StopInstance"]

    async def begin(run: Any) -> None:
        await saga.begin(run)
        run.state.pool = TOO_MUCH

    cluster.sagas = {**SAGAS, saga.action: dataclasses.replace(saga, begin=begin)}
    operation = await cluster.admit("StopInstance", instance, StopInstanceRequest())
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.REQUEST_TOO_LARGE
    assert cluster.agents.log == []
    await cluster.nothing_is_open()


async def test_an_operation_past_its_point_of_no_return_ends_as_failed_for_its_size(
    cluster: Cluster,
) -> None:
    instance = await cluster.running()
    saga = SAGAS["StopInstance"]

    async def succeed(run: Any) -> Ending:
        return dataclasses.replace(await saga.succeed(run), response=Instance(display_name=TOO_MUCH))

    async def fail(_: Any, __: RemudaError) -> Ending:
        """Not even that can be said."""
        return Ending(also=(ops.put(f"{cluster.keys.prefix}test", TOO_MUCH.encode()),))

    cluster.sagas = {**SAGAS, saga.action: dataclasses.replace(saga, succeed=succeed, fail=fail)}
    operation = await cluster.admit("StopInstance", instance, StopInstanceRequest(force=True))
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.REQUEST_TOO_LARGE
    await cluster.nothing_is_open()


async def test_a_record_that_breaks_the_saga_before_it_begins_fails_at_once(cluster: Cluster) -> None:
    instance = await cluster.running()
    saga = SAGAS["StopInstance"]

    async def begin(_: Any) -> None:
        raise ValueError("nobody can read this request")

    cluster.sagas = {**SAGAS, saga.action: dataclasses.replace(saga, begin=begin)}
    operation = await cluster.admit("StopInstance", instance, StopInstanceRequest())
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert from_status(record.error).reason is Reason.INTERNAL
    await cluster.nothing_is_open()


async def test_an_undo_that_finds_its_step_done_for_good_turns_forward(cluster: Cluster) -> None:
    """And the saga ends as if nothing had failed; also when its leader dies in between."""
    saga = SAGAS["StopInstance"]
    failed: list[OperationId] = []

    async def break_once(run: Any) -> None:
        if not failed:
            failed.append(run.operation_id)
            raise RemudaError(Reason.STEP_FAILED, "so it seems")

    async def look(_: Any) -> None:
        raise AlreadyDone("it is done")

    step = saga.steps[0]
    first = dataclasses.replace(step, name="decided_elsewhere", do=break_once, undo=look, commits=Commit.NO)
    instance = await cluster.running()
    cluster.sagas = {**SAGAS, saga.action: dataclasses.replace(saga, steps=(first, step))}
    operation = await cluster.admit("StopInstance", instance, StopInstanceRequest(force=True))
    await cluster.through_deaths(operation)
    record = await cluster.done(operation, DONE)
    assert failed == [operation]
    assert [one.state for one in record.metadata.steps] == [OperationStep.STATE_DONE] * 2
    assert (await cluster.status(instance)).state == Instance.STATE_STOPPED
    await cluster.nothing_is_open()

"""The saga test kit: what must hold for every saga, wherever it is interrupted."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.operation_pb2 import OperationMetadata, OperationStep
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId
from remuda_core.testing.hosts import FakeHost, Silence
from remuda_scheduler.engine.saga import Saga, Step, Unreachable
from remuda_scheduler.sagas.registry import SAGAS
from remuda_scheduler.testing.cluster import Cluster
from remuda_scheduler.testing.scenarios import SCENARIOS, Scenario

DONE = OperationMetadata.STATE_DONE
FAILED = OperationMetadata.STATE_FAILED
CANCELLED = OperationMetadata.STATE_CANCELLED
DO, UNDO = StepKey.DIRECTION_DO, StepKey.DIRECTION_UNDO

Function = Callable[[Any], Awaitable[None]]


def change_steps(cluster: Cluster, scenario: Scenario, change: Callable[[Step[Any]], Step[Any]]) -> Saga[Any]:
    saga = SAGAS[scenario.action]
    changed = dataclasses.replace(saga, steps=tuple(change(step) for step in saga.steps))
    cluster.sagas = {**SAGAS, scenario.action: changed}
    return changed


def twice(function: Function) -> Function:
    async def doubled(run: Any) -> None:
        await function(run)
        await function(run)

    return doubled


def failing(function: Function, *, after_effect: bool) -> Function:
    async def fails(run: Any) -> None:
        if after_effect:
            await function(run)
        raise RemudaError(Reason.STEP_FAILED, "made to fail")

    return fails


def fail_at(cluster: Cluster, scenario: Scenario, name: str, *, after_effect: bool) -> None:
    def change(step: Step[Any]) -> Step[Any]:
        if step.name != name:
            return step
        return dataclasses.replace(step, do=failing(step.do, after_effect=after_effect))

    change_steps(cluster, scenario, change)


def steps_before_commit(scenario: Scenario) -> list[str]:
    names = [step.name for step in SAGAS[scenario.action].steps]
    return names[: names.index(scenario.committed_from)] if scenario.committed_from else names


def host_steps(scenario: Scenario) -> list[Step[Any]]:
    return [step for step in SAGAS[scenario.action].steps if step.host is not None]


def cases(of: Callable[[Scenario], list[str]]) -> list[Any]:
    return [
        pytest.param(scenario, name, id=f"{scenario}-{name}")
        for scenario in SCENARIOS
        for name in of(scenario)
    ]


DECIDED_OUTSIDE = ("guest_moved", "disk_uploaded")
"""Steps with the point of no return inside, in QEMU or in the image store: no failure undoes their effect."""


def failures(scenario: Scenario) -> list[tuple[str, bool]]:
    """(step, after its effect)."""
    return [
        (name, after)
        for name in steps_before_commit(scenario)
        for after in (False, True)
        if not (after and name in DECIDED_OUTSIDE)
    ]


WAITING = ("guest_moved", "run_state_noted", "disk_uploaded", "transfer_ended")
"""Steps that wait for their host, or have nothing to clean up there, or whose effect is no host's: tested in
test_live_migrate.py and test_snapshot_instance.py.
"""


NEVER_OWED = (("StartInstance", "guest_started"),)
"""(action, step) whose undo is about the run state alone: tested in test_debts.py."""


def deadly_steps(scenario: Scenario) -> list[str]:
    before = steps_before_commit(scenario)
    return [
        step.name
        for step in host_steps(scenario)
        if step.name not in WAITING and (scenario.action, step.name) not in NEVER_OWED
        if step.name in before or step.unreachable is Unreachable.OWE
    ]


each_saga = pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
each_undoable_saga = pytest.mark.parametrize(
    "scenario", [scenario for scenario in SCENARIOS if steps_before_commit(scenario)], ids=str
)
each_host_step = pytest.mark.parametrize(
    ("scenario", "step"), cases(lambda scenario: [step.name for step in host_steps(scenario)])
)


def gives_no_order(step: str) -> bool:
    """Looking is no order; a transfer is ended where it was not heard that it has ended."""
    return step.endswith("_noted") or step == "transfer_ended"


def test_every_saga_of_the_tree_has_a_scenario() -> None:
    assert {scenario.action for scenario in SCENARIOS} == set(SAGAS)


@each_saga
async def test_it_does_what_it_promises(cluster: Cluster, scenario: Scenario) -> None:
    instance, operation = await scenario.admit(cluster)
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    await scenario.succeeded(cluster, instance)
    assert [step.name for step in record.metadata.steps] == [
        step.name for step in SAGAS[scenario.action].steps
    ]
    assert {step.state for step in record.metadata.steps} == {OperationStep.STATE_DONE}
    assert cluster.hub.finished[-1] == operation
    assert cluster.counters.operations[-1] == (scenario.action, "done")


@each_saga
async def test_each_step_can_be_done_twice(cluster: Cluster, scenario: Scenario) -> None:
    change_steps(cluster, scenario, lambda step: dataclasses.replace(step, do=twice(step.do)))
    instance, operation = await scenario.admit(cluster)
    await cluster.lead()
    await cluster.done(operation, DONE)
    await scenario.succeeded(cluster, instance)


@pytest.mark.parametrize(
    ("scenario", "step", "after_effect"),
    [
        pytest.param(scenario, step, after, id=f"{scenario}-{'after' if after else 'before'} {step}")
        for scenario in SCENARIOS
        for step, after in failures(scenario)
    ],
)
async def test_a_failure_at_any_step_leaves_nothing(
    cluster: Cluster, scenario: Scenario, step: str, after_effect: bool
) -> None:
    fail_at(cluster, scenario, step, after_effect=after_effect)
    instance, operation = await scenario.admit(cluster)
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert "made to fail" in record.error.message
    await scenario.undone(cluster, instance)
    undone = [entry.state for entry in record.metadata.steps]
    assert set(undone) == {OperationStep.STATE_UNDONE}


@each_undoable_saga
async def test_each_undo_can_be_done_twice(cluster: Cluster, scenario: Scenario) -> None:
    names = steps_before_commit(scenario)

    def change(step: Step[Any]) -> Step[Any]:
        undo = twice(step.undo) if step.undo else None
        if step.name != names[-1]:
            return dataclasses.replace(step, undo=undo)
        do = failing(step.do, after_effect=step.name not in DECIDED_OUTSIDE)
        return dataclasses.replace(step, do=do, undo=undo)

    change_steps(cluster, scenario, change)
    instance, operation = await scenario.admit(cluster)
    await cluster.lead()
    await cluster.done(operation, FAILED)
    await scenario.undone(cluster, instance)


@each_saga
async def test_the_leader_may_die_after_every_write(cluster: Cluster, scenario: Scenario) -> None:
    for writes in range(1, 60):
        instance, operation = await scenario.admit(cluster)
        over = await cluster.until_death(operation, writes=writes)
        await cluster.lead()
        await cluster.done(operation, DONE)
        await scenario.succeeded(cluster, instance)
        await cluster.close()
        if over:
            return
        await forget(cluster, instance)
    pytest.fail("it never ended before its leader died")


@each_undoable_saga
async def test_the_leader_may_die_after_every_write_of_an_undo(cluster: Cluster, scenario: Scenario) -> None:
    names = steps_before_commit(scenario)
    fail_at(cluster, scenario, names[-1], after_effect=names[-1] not in DECIDED_OUTSIDE)
    instance, operation = await scenario.admit(cluster)
    deaths = await cluster.through_deaths(operation)
    assert deaths >= len(names) // 2
    await cluster.done(operation, FAILED)
    await scenario.undone(cluster, instance)


@each_saga
async def test_leaders_that_die_all_the_time_still_bring_it_to_its_end(
    cluster: Cluster, scenario: Scenario
) -> None:
    instance, operation = await scenario.admit(cluster)
    await cluster.through_deaths(operation, writes=3)
    await cluster.done(operation, DONE)
    await scenario.succeeded(cluster, instance)


async def forget(cluster: Cluster, instance: Any) -> None:
    """Empties hosts and store for the next round."""
    for host in cluster.agents.hosts.values():
        host.domains.clear()
        host.directories.clear()
    names = ("instances", "instance_status", "instance_names")
    for kind in (*names, "ports", "macs", "image_refs", "images", "events"):
        await cluster.etcd.delete_prefix(f"{cluster.keys.prefix}{kind}/")
    revision = (await cluster.etcd.range_key(cluster.keys.leader)).revision
    await cluster.store.statuses.wait_revision(revision, 5)


@each_host_step
async def test_an_answer_that_is_lost_changes_nothing(
    cluster: Cluster, scenario: Scenario, step: str
) -> None:
    instance, operation = await scenario.admit(cluster)
    silenced: list[HostId] = []

    async def lose(host: FakeHost, key: StepKey) -> None:
        if key.step == step and not silenced:
            silenced.append(host.id)
            host.fall_silent(Silence.ANSWER_LOST, calls=2)

    cluster.agents.after = lose
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert silenced or gives_no_order(step)
    await scenario.succeeded(cluster, instance)


@pytest.mark.parametrize(("scenario", "step"), cases(deadly_steps))
async def test_a_host_that_dies_inside_a_step_gets_what_it_owes_when_it_returns(
    cluster: Cluster, scenario: Scenario, step: str
) -> None:
    found = SAGAS[scenario.action].step(step)
    instance, operation = await scenario.admit(cluster)
    gone: list[FakeHost] = []

    async def die(host: FakeHost, key: StepKey) -> None:
        if key.step == step and not gone:
            gone.append(host)
            host.fall_silent()

    cluster.agents.after = die
    term = await cluster.lead()
    owes = found.unreachable is Unreachable.OWE
    record = await cluster.done(operation, DONE if owes else FAILED)
    assert owes or "HOST_UNREACHABLE" in str(record.error)
    assert await cluster.left("debts"), "what could not be cleaned up is not forgotten"
    gone[0].come_back()
    assert await term.engine.pay_debts(gone[0].id) >= 1
    await (scenario.succeeded if owes else scenario.undone)(cluster, instance)


@pytest.mark.parametrize(
    ("scenario", "step"), cases(lambda scenario: [step.name for step in SAGAS[scenario.action].steps])
)
async def test_a_cancel_inside_any_step_is_obeyed_or_comes_too_late(
    cluster: Cluster, scenario: Scenario, step: str
) -> None:
    asked = asyncio.Event()

    def change(one: Step[Any]) -> Step[Any]:
        async def cancelled_meanwhile(run: Any) -> None:
            if not asked.is_set():
                asked.set()
                await cluster.cancel(run.operation_id)
                # Not wait_for: it swallows the cancellation that comes with the event.
                async with asyncio.timeout(5):
                    await run.cancelled.wait()
            await one.do(run)

        return dataclasses.replace(one, do=cancelled_meanwhile) if one.name == step else one

    change_steps(cluster, scenario, change)
    instance, operation = await scenario.admit(cluster)
    await cluster.lead()
    record = await cluster.ended(operation)
    if step in steps_before_commit(scenario):
        assert record.metadata.state == CANCELLED
        assert record.metadata.cancel_outcome == OperationMetadata.CANCEL_OUTCOME_CANCELLED
        await scenario.undone(cluster, instance)
    else:
        assert record.metadata.state == DONE
        assert record.metadata.cancel_outcome == OperationMetadata.CANCEL_OUTCOME_TOO_LATE
        await scenario.succeeded(cluster, instance)


@each_saga
async def test_a_cancel_before_it_began_does_nothing_at_all(cluster: Cluster, scenario: Scenario) -> None:
    instance, operation = await scenario.admit(cluster)
    await cluster.cancel(operation)
    orders = len(cluster.agents.log)
    await cluster.lead()
    await cluster.done(operation, CANCELLED)
    await scenario.undone(cluster, instance)
    assert len(cluster.agents.log) == orders


@each_host_step
async def test_the_leader_may_die_between_a_hosts_deed_and_its_record(
    cluster: Cluster, scenario: Scenario, step: str
) -> None:
    instance, operation = await scenario.admit(cluster)
    inside = asyncio.Event()

    async def hang(_: FakeHost, key: StepKey) -> None:
        if key.step == step and not inside.is_set():
            inside.set()
            await asyncio.Event().wait()

    cluster.agents.after = hang
    await cluster.lead()
    ended = asyncio.create_task(cluster.ended(operation))
    reached = asyncio.create_task(inside.wait())
    await asyncio.wait({ended, reached}, return_when=asyncio.FIRST_COMPLETED)
    assert inside.is_set() or gives_no_order(step)
    for task in (ended, reached):
        task.cancel()
    await asyncio.gather(ended, reached, return_exceptions=True)
    await cluster.close()
    await cluster.lead()
    await cluster.done(operation, DONE)
    await scenario.succeeded(cluster, instance)

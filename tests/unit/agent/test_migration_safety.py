"""What must never happen at a migration's source: begun unordered, begun twice, unsteered, two guests."""

import asyncio
from dataclasses import replace

import pytest
from remuda.agent.v1.common_pb2 import DomainSpec, Nic
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_agent import migration_following, migration_steering
from remuda_agent.hypervisor import CompletedMigration, MigrationRequest, hypervisor_error
from remuda_agent.hypervisor.fake import FakeHypervisor, FakeTimings
from remuda_agent.hypervisor.fake.world import JobResult
from remuda_agent.jobs import Job
from remuda_agent.migration_parameters import Parameters
from remuda_agent.observer import Observer
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, OperationId
from remuda_core.migration import ladder
from remuda_core.testing.waiting import wait_for

from tests.unit.agent.conftest import INSTANCE, NEVER, Source, start


async def shown(source: Source, host: str = "a") -> tuple[str, str, str]:
    view = await source.view(host)
    return ("ABSENT", "", "") if view is None else (view.power_state, view.reason, view.job)


async def power(source: Source, host: str = "a") -> str:
    return (await shown(source, host))[0]


async def paused_for_it(source: Source, *, timeout: float = 0.3) -> Job:
    """A migration whose guest we have paused, at a moment when libvirt still says "user"."""
    source.fabric.timings = FakeTimings(migrate_memory=NEVER, switch_over=600)
    job, _ = source.migrations.start_or_join(start(timeout=timeout, pause=True))
    await wait_for(lambda: is_paused(source), timeout=60)
    return job


async def is_paused(source: Source) -> bool:
    return await power(source) == "PAUSED"


def break_job(source: Source, *, target_runs: bool) -> None:
    """The network is cut after the switch-over: the source's libvirt gives up and leaves its copy so."""
    with source.fabric.transaction() as world:
        [number] = world.jobs
        arrived = world.hosts["b"].domains[INSTANCE]
        arrived.incoming, arrived.paused, arrived.reason = not target_runs, not target_runs, "migrated"
        world.end_job(world.jobs[number], JobResult(outcome="failed", message="client socket is closed"))
        world.hosts["a"].domains[INSTANCE].reason = "user"


# Only what was ordered -----------------------------------------------------------------------


async def test_a_restarted_agent_begins_no_migration_whose_job_has_ended_meanwhile(source: Source) -> None:
    Parameters.keep(source.directory, start())
    await source.migrations.adopt()
    assert source.jobs.steps() == {}
    await asyncio.sleep(0.3)
    assert (await power(source), await power(source, "b")) == ("RUNNING", "ABSENT")
    assert source.left == []


async def test_a_restarted_agent_pauses_no_guest_that_does_not_migrate(source: Source) -> None:
    Parameters.keep(source.directory, start(timeout=0.01, pause=True))
    await asyncio.sleep(0.02)
    await source.migrations.adopt()
    await asyncio.sleep(0.3)
    assert await power(source) == "RUNNING"


async def test_a_migration_of_another_placement_is_not_adopted(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    job, _ = source.migrations.start_or_join(start(timeout=60))
    await source.until_job()
    await source.jobs.close(0)
    assert job.stop.is_set() is False
    await source.hypervisor.set_epoch(INSTANCE, epoch=Epoch(4), operation_id=OperationId("newer"))
    again = source.restarted()
    await again.migrations.adopt()
    assert again.jobs.steps() == {}


@pytest.mark.parametrize("epoch", [0, 2])
async def test_an_order_for_another_epoch_than_the_guests_moves_nothing(source: Source, epoch: int) -> None:
    request = start()
    request.key.epoch = epoch
    refused = await source.failure(request)
    assert refused.reason is Reason.STALE_EPOCH
    assert (await power(source), await power(source, "b")) == ("RUNNING", "ABSENT")
    assert source.left == []


async def test_an_agent_whose_hypervisor_does_not_answer_yet_adopts_and_looks_later(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration_following, "AWAY_SECONDS", 0.01)
    Parameters.keep(source.directory, start())
    source.fabric.faults["a"].fail("view", "cannot connect", times=3)
    await source.migrations.adopt()
    assert source.jobs.migrates(INSTANCE)
    assert (await source.failure(start())).reason is Reason.MIGRATION_FAILED
    assert (await power(source), await power(source, "b")) == ("RUNNING", "ABSENT")
    assert source.left == []


# Two guests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_guest_paused_for_its_migration_is_left_to_the_leader_when_the_target_may_run_it(
    source: Source, restarted: bool
) -> None:
    job = await paused_for_it(source)
    if restarted:
        await source.jobs.close(0)
    break_job(source, target_runs=True)
    again = source.restarted() if restarted else source
    if restarted:
        await again.migrations.adopt()
    else:
        with pytest.raises(RemudaError, match="socket is closed"):
            await job.result()
    assert (await shown(again), await power(again, "b")) == (("PAUSED", "user", "NONE"), "RUNNING")
    # Asked to go on with it, it is not sent once more either.
    refused = await again.failure(start(timeout=60, pause=True))
    assert (refused.reason, "may have moved" in str(refused)) == (Reason.MIGRATION_FAILED, True)
    assert await power(again) == "PAUSED"


async def test_once_the_leader_has_let_the_guest_go_on_it_can_be_sent_again(source: Source) -> None:
    job = await paused_for_it(source)
    break_job(source, target_runs=False)
    with pytest.raises(RemudaError):
        await job.result()
    await source.hypervisor.resume(INSTANCE)
    source.fabric.timings = FakeTimings()
    again, _ = source.migrations.start_or_join(start())
    await again.result()
    assert await power(source, "b") == "RUNNING"
    assert source.left == []


async def test_a_guest_paused_for_its_migration_goes_on_when_that_was_surely_aborted(source: Source) -> None:
    job = await paused_for_it(source)
    with source.fabric.transaction() as world:
        # Not yet at the switch-over, as seen from here.
        [moving] = world.jobs.values()
        moving.switched, moving.paused_at = False, None
        world.hosts["a"].domains[INSTANCE].reason = "user"
    job.stop.set()
    with pytest.raises(RemudaError) as cancelled:
        await job.result()
    assert cancelled.value.reason is Reason.CANCELLED
    assert (await power(source), await power(source, "b")) == ("RUNNING", "ABSENT")
    assert source.left == []


async def test_a_guest_that_stands_at_its_switch_over_is_not_sent_again(source: Source) -> None:
    await source.hypervisor.pause(INSTANCE)
    with source.fabric.transaction() as world:
        world.hosts["a"].domains[INSTANCE].reason = "migration"
    refused = await source.failure(start())
    assert refused.reason is Reason.MIGRATION_FAILED
    assert await power(source, "b") == "ABSENT"


# Steering ------------------------------------------------------------------------------------


async def test_a_job_that_does_not_obey_its_abort_stays_ours_until_it_ends(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=1.0)
    gate = source.fabric.faults["a"].hang("abort_job")
    job, _ = source.migrations.start_or_join(start(timeout=0.1))
    observer = Observer(source.hypervisor, first_sequence=1, migrates=source.jobs.migrates)
    await asyncio.sleep(0.5)
    assert job.task is not None
    assert not job.task.done()
    assert source.left[0] == f"{INSTANCE}.migration"
    assert (await observer.one(INSTANCE)).job == ObservedInstance.JOB_MIGRATION_OUT
    gate.set()
    with pytest.raises(RemudaError) as late:
        await job.result()
    assert late.value.reason is Reason.MIGRATION_TIMEOUT
    assert await power(source) == "RUNNING"


@pytest.mark.parametrize(
    ("cancel", "pause", "why"),
    [
        (True, False, Reason.CANCELLED),
        (False, False, Reason.MIGRATION_TIMEOUT),
        (False, True, Reason.MIGRATION_TIMEOUT),
    ],
)
async def test_a_migration_that_waits_for_its_turn_and_is_given_up_never_begins(
    source: Source, cancel: bool, pause: bool, why: Reason
) -> None:
    gate = source.fabric.faults["a"].hang("migrate")
    job, _ = source.migrations.start_or_join(start(timeout=60 if cancel else 0.1, pause=pause))
    await wait_for(lambda: source.left or None, timeout=60)
    if cancel:
        job.stop.set()
    with pytest.raises(RemudaError) as given_up:
        await job.result()
    assert given_up.value.reason is why
    gate.set()
    await asyncio.sleep(0.1)
    assert (await power(source), await power(source, "b")) == ("RUNNING", "ABSENT")
    assert source.left == []


async def test_a_paused_guest_of_which_nothing_more_is_sent_does_not_stand_still_for_ever(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "STUCK_SECONDS", 0.3)
    job = await paused_for_it(source)
    with source.fabric.transaction() as world:
        [moving] = world.jobs.values()
        moving.switched, moving.paused_at = False, None  # hangs before its switch-over
        moving.timings = replace(moving.timings, migrate_disks=NEVER)
        moving.request = replace(moving.request, shared_disks=False)
        world.hosts["a"].domains[INSTANCE].reason = "user"
    with pytest.raises(RemudaError) as late:
        await job.result()
    assert late.value.reason is Reason.MIGRATION_TIMEOUT
    assert (await power(source), source.left) == ("RUNNING", [])


# Following -----------------------------------------------------------------------------------


async def test_a_lost_answer_of_the_hypervisor_is_not_the_end_of_its_job(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration_following, "AWAY_SECONDS", 0.01)
    source.fabric.timings = FakeTimings(migrate_memory=0.8, switch_over=0.02)
    real = source.hypervisor.migrate

    async def broken(request: MigrationRequest, *, begun: asyncio.Event | None = None) -> CompletedMigration:
        going = asyncio.create_task(real(request, begun=begun))
        await asyncio.sleep(0.1)
        going.cancel()
        source.fabric.faults["a"].fail("view", "cannot connect", times=3)
        raise hypervisor_error("connection closed due to keepalive timeout")

    monkeypatch.setattr(source.hypervisor, "migrate", broken)
    job, _ = source.migrations.start_or_join(start(timeout=60))
    await asyncio.sleep(0.4)
    joining, joined = source.migrations.start_or_join(start(timeout=60))
    assert (joined, joining) == (True, job)
    await job.result()
    assert source.migrations.ended("operation").downtime_ms == 20
    assert await power(source, "b") == "RUNNING"


async def test_a_job_whose_call_was_lost_can_still_be_cancelled(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    source.migrations.start_or_join(start(timeout=60))
    await source.until_job()
    await source.jobs.close(0)
    (source.directory / f"{INSTANCE}.migration").unlink()
    again = source.restarted()
    await again.migrations.adopt()
    # Nothing is known of it here: the order finds libvirt's job and follows that.
    job, joined = again.migrations.start_or_join(start(timeout=60))
    await asyncio.sleep(0.1)
    job.stop.set()
    with pytest.raises(RemudaError) as cancelled:
        await job.result()
    assert (joined, cancelled.value.reason) == (False, Reason.CANCELLED)
    assert await power(source) == "RUNNING"


async def test_a_guest_that_has_moved_has_moved_although_its_figures_are_lost(source: Source) -> None:
    source.fabric.faults["a"].fail("completed_stats", "cannot connect", times=9)
    source.fabric.faults["a"].fail("migrate", "the answer is lost", after=True)
    job, _ = source.migrations.start_or_join(start())
    await job.result()
    assert not source.migrations.ended("operation").HasField("downtime_ms")


async def test_an_order_to_another_target_does_not_join_what_still_runs(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    source.migrations.start_or_join(start(timeout=60))
    await source.until_job()
    with pytest.raises(RemudaError, match="to b") as refused:
        source.migrations.start_or_join(start(timeout=60, target="c"))
    assert refused.value.reason is Reason.STEP_FAILED


async def test_the_next_try_of_an_operation_has_its_own_target_and_start_time(source: Source) -> None:
    old = Parameters.keep(source.directory, start())
    await asyncio.sleep(0.02)
    FakeHypervisor(source.fabric, "c")
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    source.migrations.start_or_join(start(timeout=60, target="c"))
    await source.until_job()
    [stored] = Parameters.left_in(source.directory)
    assert stored.target.hostname == "c"
    assert Parameters.of_running(source.directory, stored).began > old.began
    with pytest.raises(RemudaError, match="to c"):
        Parameters.of_running(source.directory, start(target="b"))


# What is seen --------------------------------------------------------------------------------


async def test_an_accepted_migration_is_shown_before_the_hypervisor_shows_it(source: Source) -> None:
    observer = Observer(source.hypervisor, first_sequence=1, migrates=source.jobs.migrates)
    gate = source.fabric.faults["a"].hang("migrate")
    assert (await observer.one(INSTANCE)).job == ObservedInstance.JOB_UNSPECIFIED
    job, _ = source.migrations.start_or_join(start())
    assert (await observer.one(INSTANCE)).job == ObservedInstance.JOB_MIGRATION_OUT
    [seen] = (await observer.everything()).instances
    assert seen.job == ObservedInstance.JOB_MIGRATION_OUT
    gate.set()
    await job.result()
    assert (await observer.one(INSTANCE)).job == ObservedInstance.JOB_UNSPECIFIED


# The target's bridges ------------------------------------------------------------------------


def plugged(**bridges: str) -> "DomainSpec":
    return DomainSpec(nics=[Nic(physical_network=name, mac_address=mac) for name, mac in bridges.items()])


async def test_the_guest_is_plugged_into_the_targets_bridges(source: Source) -> None:
    request = start()
    request.target.bridges.update({"blue": "vmbr7", "red": "vmbr8"})
    request.spec.CopyFrom(plugged(blue="52:54:00:00:00:0A"))
    job, _ = source.migrations.start_or_join(request)
    await job.result()
    arrived = source.fabric.domain("b", INSTANCE)
    assert arrived is not None
    assert arrived.live is not None
    assert arrived.definition is not None
    assert [nic.bridge for nic in arrived.live.nics] == ["vmbr7"]
    assert [nic.bridge for nic in arrived.definition.nics] == ["vmbr7"]


async def test_a_port_for_which_the_target_has_named_no_bridge_is_not_moved(source: Source) -> None:
    request = start()
    request.target.bridges["red"] = "vmbr8"
    request.spec.CopyFrom(plugged(blue="52:54:00:00:00:0a"))
    refused = await source.failure(request)
    assert (refused.reason, "blue" in str(refused)) == (Reason.STEP_FAILED, True)
    assert (await power(source), await power(source, "b"), source.left) == ("RUNNING", "ABSENT", [])


async def test_a_fault_of_ours_does_not_leave_a_migration_unsteered(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OverflowError("a figure that nobody thought of")

    monkeypatch.setattr(migration_steering, "to_progress", broken)
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    assert (await source.failure(start(timeout=0.3))).reason is Reason.MIGRATION_TIMEOUT

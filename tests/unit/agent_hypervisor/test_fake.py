"""What the fake can do beyond libvirt: its clock, its failures, power and network of hosts, its file."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from remuda_agent.hypervisor import (
    CompletedMigration,
    DomainDescription,
    DomainJob,
    DomainNic,
    EventKind,
    MigrationRequest,
    PowerState,
)
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor, FakeTimings, ManualClock, WallClock
from remuda_agent.hypervisor.fake.world import TOLD_KEPT
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, InstanceId, OperationId
from remuda_core.testing.waiting import wait_for

GUEST = DomainDescription(
    instance_id=InstanceId("i-1"),
    title="t",
    epoch=Epoch(1),
    operation_id=OperationId("o-1"),
    vcpus=1,
    memory_mib=96,
    disk=Path("/disk"),
    config_drive=Path("/config"),
    console=Path("/console"),
    nics=(DomainNic(mac_address="52:54:00:00:00:01", bridge="br0"),),
)
ID = GUEST.instance_id
MOVE = MigrationRequest(
    instance_id=ID, operation_id=OperationId("o-2"), target_epoch=Epoch(2), target_hostname="b"
)
SLOW = FakeTimings(migrate_disks=10, migrate_memory=20, switch_over=0.5)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def fabric(clock: ManualClock) -> FakeFabric:
    return FakeFabric(clock=clock, timings=SLOW)


async def started(fabric: FakeFabric) -> tuple[FakeHypervisor, FakeHypervisor]:
    a, b = FakeHypervisor(fabric, "a"), FakeHypervisor(fabric, "b")
    await a.define(GUEST)
    await a.start(ID)
    return a, b


async def moving(fabric: FakeFabric, a: FakeHypervisor) -> "asyncio.Task[CompletedMigration]":
    task = asyncio.create_task(a.migrate(MOVE))
    await wait_for(lambda: a.job_stats(ID), timeout=60)
    return task


async def test_a_migration_takes_the_time_it_is_told(fabric: FakeFabric, clock: ManualClock) -> None:
    a, b = await started(fabric)
    task = await moving(fabric, a)
    await clock.advance(5)
    halfway = await a.job_stats(ID)
    assert halfway is not None
    assert halfway.copying_disks
    assert halfway.disk_remaining_bytes == halfway.disk_total_bytes / 2
    await clock.advance(15)
    later = await a.job_stats(ID)
    assert later is not None
    assert not later.copying_disks
    assert later.memory_remaining_bytes == later.memory_total_bytes / 2
    await clock.advance(10.2)
    here, there = await a.view(ID), await b.view(ID)
    assert here is not None
    assert there is not None
    assert (here.power_state, there.power_state) == (PowerState.PAUSED, PowerState.PAUSED)
    # Past the switch-over there is no way back.
    await a.abort_job(ID)
    await clock.advance(0.3)
    measured = await task
    assert (measured.downtime_ms, measured.job_duration_ms) == (500, 30_500)
    arrived = await b.view(ID)
    assert arrived is not None
    assert (arrived.power_state, arrived.epoch, arrived.definition_epoch) == (PowerState.RUNNING, 2, 2)


async def test_a_guest_that_does_not_converge_does_so_when_it_is_paused(
    fabric: FakeFabric, clock: ManualClock
) -> None:
    fabric.timings = FakeTimings(migrate_memory=float("inf"), switch_over=0.1)
    a, b = await started(fabric)
    task = await moving(fabric, a)
    await clock.advance(1000)
    stats = await a.job_stats(ID)
    assert stats is not None
    assert stats.dirty_bytes_per_second > stats.memory_bytes_per_second
    assert not task.done()
    await a.pause(ID)
    await clock.advance(0.2)
    await task
    view = await b.view(ID)
    assert view is not None
    assert view.power_state is PowerState.RUNNING


async def test_a_job_goes_on_without_the_agent_that_began_it(fabric: FakeFabric, clock: ManualClock) -> None:
    a, _ = await started(fabric)
    task = await moving(fabric, a)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    again = FakeHypervisor(fabric, "a")
    view = await again.view(ID)
    assert view is not None
    assert view.job is DomainJob.MIGRATION_OUT
    await clock.advance(31)
    view = await again.view(ID)
    assert view is not None
    assert (view.power_state, view.reason) == (PowerState.SHUTOFF, "migrated")
    assert (await again.completed_stats(ID)) is not None


async def test_an_ordered_failure_ends_the_migration_at_its_time(
    fabric: FakeFabric, clock: ManualClock
) -> None:
    a, b = await started(fabric)
    fabric.migration_failure["a"] = (4.0, "disk mirror broke")
    task = await moving(fabric, a)
    await clock.advance(4)
    with pytest.raises(RemudaError, match="disk mirror broke"):
        await task
    view = await a.view(ID)
    assert view is not None
    assert (view.power_state, view.job) == (PowerState.RUNNING, DomainJob.NONE)
    assert await b.view(ID) is None


@pytest.mark.parametrize("who", ["a", "b"])
async def test_a_cut_host_is_noticed_after_the_peer_timeout(
    fabric: FakeFabric, clock: ManualClock, who: str
) -> None:
    a, b = await started(fabric)
    task = await moving(fabric, a)
    fabric.cut(who)
    await clock.advance(5)
    assert not task.done()
    await clock.advance(2)
    with pytest.raises(RemudaError, match="socket is closed"):
        await task
    assert await b.view(ID) is None
    with pytest.raises(RemudaError, match="No route"):
        await a.migrate(MOVE)
    fabric.heal(who)
    await moving(fabric, a)
    await clock.advance(31)
    assert await b.view(ID) is not None


async def test_a_power_failure_leaves_definitions_only(fabric: FakeFabric) -> None:
    a, _ = await started(fabric)
    fabric.power_fail("a")
    with pytest.raises(RemudaError, match="no power"):
        await a.domains()
    fabric.boot("a")
    view = await a.view(ID)
    assert view is not None
    assert (view.power_state, view.reason) == (PowerState.SHUTOFF, "unknown")
    await a.start(ID)


async def test_a_target_without_power_loses_the_incoming_copy_only(fabric: FakeFabric) -> None:
    a, b = await started(fabric)
    task = await moving(fabric, a)
    fabric.power_fail("b")
    with pytest.raises(RemudaError):
        await task
    fabric.boot("b")
    assert await b.domains() == []
    view = await a.view(ID)
    assert view is not None
    assert view.power_state is PowerState.RUNNING


async def test_a_guest_that_goes_off_while_it_moves_is_told_apart(
    fabric: FakeFabric, clock: ManualClock
) -> None:
    a, b = await started(fabric)
    task = await moving(fabric, a)
    fabric.power_button_inside("a", ID)
    await clock.advance(0)
    with pytest.raises(RemudaError) as ended:
        await task
    assert ended.value.reason is Reason.GUEST_STOPPED
    assert await b.view(ID) is None
    view = await a.view(ID)
    assert view is not None
    assert (view.power_state, view.reason) == (PowerState.SHUTOFF, "shutdown")


async def test_a_press_during_boot_is_lost_and_a_later_one_takes_its_time(
    fabric: FakeFabric, clock: ManualClock
) -> None:
    fabric.timings = FakeTimings(boot=8, shutdown=2)
    a, _ = await started(fabric)
    await a.shutdown(ID)
    await clock.advance(20)
    view = await a.view(ID)
    assert view is not None
    assert view.power_state is PowerState.RUNNING
    await a.shutdown(ID)
    await clock.advance(1)
    assert (await a.domains())[0].active
    await clock.advance(1)
    assert (await a.domains())[0].reason == "shutdown"


async def test_what_is_due_is_told_to_subscribers_although_nobody_looks(
    fabric: FakeFabric, clock: ManualClock
) -> None:
    fabric.timings = FakeTimings(shutdown=2)
    a, _ = await started(fabric)
    await a.shutdown(ID)
    async with a.events() as events:
        assert (await anext(events)).kind is EventKind.RELIST
        await asyncio.sleep(0)
        await clock.advance(3)
        assert [(await anext(events)).kind for _ in range(2)] == [EventKind.SHUTDOWN, EventKind.STOPPED]


async def test_calls_fail_as_often_as_ordered_before_or_after_their_work(fabric: FakeFabric) -> None:
    a, _ = await started(fabric)
    faults = fabric.faults["a"]
    faults.fail("pause", "monitor is stuck", times=2)
    for _ in range(2):
        with pytest.raises(RemudaError, match="monitor is stuck"):
            await a.pause(ID)
    view = await a.view(ID)
    assert view is not None
    assert view.power_state is PowerState.RUNNING
    faults.fail("pause", after=True)
    with pytest.raises(RemudaError):
        await a.pause(ID)
    view = await a.view(ID)
    assert view is not None
    assert view.power_state is PowerState.PAUSED
    await a.resume(ID)


async def test_calls_can_be_delayed_and_held(fabric: FakeFabric, clock: ManualClock) -> None:
    a, _ = await started(fabric)
    faults = fabric.faults["a"]
    faults.delay("pause", 3)
    slow = asyncio.create_task(a.pause(ID))
    await asyncio.sleep(0)
    await clock.advance(2)
    assert not slow.done()
    await clock.advance(1)
    await slow
    gate = faults.hang("resume")
    held = asyncio.create_task(a.resume(ID))
    await asyncio.sleep(0)
    assert not held.done()
    gate.set()
    await held


async def test_a_guest_agent_can_be_missing(fabric: FakeFabric) -> None:
    a, _ = await started(fabric)
    assert await a.guest_agent_ping(ID, timeout=1)
    domain = fabric.domain("a", ID)
    assert domain is not None
    domain.guest_agent = False
    assert not await a.guest_agent_ping(ID, timeout=1)


async def test_hundreds_of_hosts_fit_into_one_process() -> None:
    fabric = FakeFabric()
    hosts = [FakeHypervisor(fabric, f"h{number}") for number in range(300)]
    for number, host in enumerate(hosts):
        await host.define(replace(GUEST, instance_id=InstanceId(f"i-{number}")))
        await host.start(InstanceId(f"i-{number}"))
    views = [view for host in hosts for view in await host.domains()]
    assert len(views) == 300
    assert all(view.power_state is PowerState.RUNNING for view in views)


async def test_a_world_in_a_file_is_found_again_with_its_running_job(tmp_path: Path) -> None:
    file = tmp_path / "world.json"
    fabric = FakeFabric(file=file, clock=WallClock(speed=1000), timings=FakeTimings(migrate_memory=100))
    a, _ = await started(fabric)
    await a.pause(ID)
    await a.resume(ID)
    task = asyncio.create_task(a.migrate(MOVE))
    await wait_for(lambda: a.job_stats(ID), timeout=60)
    before = await a.view(ID)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    other = FakeFabric(file=file, clock=WallClock(speed=1000))
    again, target = FakeHypervisor(other, "a"), FakeHypervisor(other, "b")
    seen = await again.view(ID)
    assert seen is not None
    assert before is not None
    if seen.job is DomainJob.MIGRATION_OUT:
        assert seen == before

    async def arrived() -> bool:
        view = await target.view(ID)
        return view is not None and view.power_state is PowerState.RUNNING

    await wait_for(arrived, timeout=60)
    assert (await again.completed_stats(ID)) == (await target.completed_stats(ID))


async def test_changes_of_another_process_are_noticed(tmp_path: Path) -> None:
    file = tmp_path / "world.json"
    one, two = FakeFabric(file=file), FakeFabric(file=file)
    a, same = FakeHypervisor(one, "a"), FakeHypervisor(two, "a")
    async with a.events() as events:
        assert (await anext(events)).kind is EventKind.RELIST
        await same.define(GUEST)
        await same.start(ID)
        async with asyncio.timeout(5):
            assert [(await anext(events)).kind for _ in range(2)] == [EventKind.DEFINED, EventKind.STARTED]
    assert (await a.domains())[0].instance_id == ID


async def test_who_missed_too_many_changes_of_another_process_looks_at_everything(tmp_path: Path) -> None:
    file = tmp_path / "world.json"
    one, two = FakeFabric(file=file), FakeFabric(file=file)
    a, same = FakeHypervisor(one, "a"), FakeHypervisor(two, "a")
    for _ in range(TOLD_KEPT):
        await same.define(GUEST)
        await same.undefine(ID)
    async with a.events() as events:
        assert (await anext(events)).kind is EventKind.RELIST
        async with asyncio.timeout(5):
            assert (await anext(events)).kind is EventKind.RELIST

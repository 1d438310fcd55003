"""What can be changed of a fake migration while it runs, and what then becomes of it."""

import asyncio
from dataclasses import replace

import pytest
from remuda_agent.hypervisor import PowerState
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor, FakeTimings, ManualClock
from remuda_core.errors import RemudaError
from remuda_core.testing.waiting import wait_for

from tests.unit.agent_hypervisor.test_fake import ID, MOVE, SLOW, moving, started


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def fabric(clock: ManualClock) -> FakeFabric:
    return FakeFabric(clock=clock, timings=SLOW)


async def endless(fabric: FakeFabric, clock: ManualClock) -> tuple[FakeHypervisor, FakeHypervisor]:
    """A migration in its memory phase that does not converge, at 10 MiB/s."""
    fabric.timings = FakeTimings(migrate_memory=float("inf"), switch_over=0.1, enough_downtime_ms=500)
    a, b = await started(fabric)
    asked = replace(MOVE, bandwidth_mib_s=10, shared_disks=True, allow_post_copy=True)
    fabric_task = asyncio.create_task(a.migrate(asked))
    await wait_for(lambda: a.job_stats(ID), timeout=60)
    assert not fabric_task.done()
    await clock.advance(1)
    return a, b


async def shown_rate(hypervisor: FakeHypervisor) -> tuple[int, int]:
    stats = await hypervisor.job_stats(ID)
    assert stats is not None
    return stats.memory_processed_bytes, stats.memory_bytes_per_second


async def test_a_changed_cap_counts_from_then_on(fabric: FakeFabric, clock: ManualClock) -> None:
    a, _ = await endless(fabric, clock)
    assert await shown_rate(a) == (10 << 20, 10 << 20)
    await a.set_bandwidth(ID, mib_per_second=3, post_copy=False)
    await clock.advance(2)
    assert await shown_rate(a) == (16 << 20, 3 << 20)


async def test_passes_over_what_is_hot_follow_the_first(fabric: FakeFabric, clock: ManualClock) -> None:
    a, _ = await endless(fabric, clock)
    seen = []
    for _ in range(3):
        stats = await a.job_stats(ID)
        assert stats is not None
        seen.append((stats.iteration, stats.memory_remaining_bytes > stats.memory_total_bytes // 64))
        await clock.advance(100)
    assert seen[0] == (1, True)
    assert 1 < seen[1][0] < seen[2][0]
    assert not seen[2][1]


async def test_a_longer_pause_ends_it_after_the_first_pass(fabric: FakeFabric, clock: ManualClock) -> None:
    a, b = await endless(fabric, clock)
    assert await a.set_max_downtime(ID, milliseconds=499) == 499
    await clock.advance(300)
    assert await a.job_stats(ID) is not None
    await a.set_max_downtime(ID, milliseconds=500)
    await clock.advance(0.2)
    view = await b.view(ID)
    assert view is not None
    assert view.power_state is PowerState.RUNNING


async def test_post_copy_runs_at_the_target_and_cannot_be_aborted(
    fabric: FakeFabric, clock: ManualClock
) -> None:
    a, b = await endless(fabric, clock)
    await a.start_post_copy(ID)
    here, there = await a.view(ID), await b.view(ID)
    assert here is not None
    assert there is not None
    assert (here.power_state, here.reason, here.job) == (PowerState.PAUSED, "postcopy", "MIGRATION_OUT")
    assert (there.power_state, there.reason, there.job) == (PowerState.RUNNING, "postcopy", "MIGRATION_IN")
    await a.abort_job(ID)
    with pytest.raises(RemudaError):
        await a.resume(ID)
    assert await a.job_stats(ID) is not None
    await clock.advance(1000)
    there = await b.view(ID)
    assert there is not None
    assert (there.reason, there.job, there.persistent) == ("migrated", "NONE", True)


async def test_post_copy_is_refused_before_memory_and_without_its_flag(
    fabric: FakeFabric, clock: ManualClock
) -> None:
    a, _ = await started(fabric)
    await moving(fabric, a)
    with pytest.raises(RemudaError, match="not enabled"):
        await a.start_post_copy(ID)


async def test_post_copy_that_is_cut_leaves_a_part_of_the_guest_on_each_host(
    fabric: FakeFabric, clock: ManualClock
) -> None:
    a, b = await endless(fabric, clock)
    await a.start_post_copy(ID)
    fabric.cut("b")
    await clock.advance(7)
    for view in (await a.view(ID), await b.view(ID)):
        assert view is not None
        assert (view.power_state, view.reason) == (PowerState.PAUSED, "postcopy_failed")

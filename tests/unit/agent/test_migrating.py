"""A migration as a job of the source's agent: deadline, cancel, pause, restart. On the fake hypervisor."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from remuda_agent import migrating
from remuda_agent.hypervisor import CompletedMigration, HypervisorEvent
from remuda_agent.hypervisor.fake import FakeHypervisor, FakeTimings
from remuda_agent.hypervisor.model import MigrationRequest, hypervisor_error
from remuda_agent.migration_parameters import Parameters
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId
from remuda_core.testing.waiting import wait_for

from tests.unit.agent.conftest import INSTANCE, NEVER, OPERATION, Source, start


async def test_a_migration_tells_what_was_measured_and_leaves_no_parameters(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=0.05, switch_over=0.02)
    job, joined = source.migrations.start_or_join(start())
    await job.result()
    assert not joined
    ended = source.migrations.ended(OPERATION)
    assert (ended.downtime_ms, ended.memory_bytes) == (20, 64 << 20)
    assert source.kinds == ["JOB_STARTED", "SOURCE_PAUSED"]
    assert source.left == []


async def test_a_switch_over_that_is_told_after_the_call_has_returned_is_noted(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "LATE_EVENT_SECONDS", 30.0)
    in_time = source.hypervisor.events

    @asynccontextmanager
    async def late() -> AsyncIterator[AsyncIterator[HypervisorEvent]]:
        async def delayed() -> AsyncIterator[HypervisorEvent]:
            async for event in events:
                await asyncio.sleep(0.05)
                yield event

        async with in_time() as events:
            yield delayed()

    monkeypatch.setattr(source.hypervisor, "events", late)
    job, _ = source.migrations.start_or_join(start())
    await job.result()
    assert source.kinds == ["JOB_STARTED", "SOURCE_PAUSED"]


async def test_a_leader_that_asks_again_after_the_end_gets_the_same_answer(source: Source) -> None:
    source.fabric.timings = FakeTimings(switch_over=0.02)
    for _ in range(2):
        job, _ = source.migrations.start_or_join(start())
        await job.result()
        assert source.migrations.ended(OPERATION).downtime_ms == 20
    assert source.kinds.count("JOB_STARTED") == 1


async def test_a_cancel_aborts_the_job_and_is_not_called_a_timeout(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    job, _ = source.migrations.start_or_join(start(timeout=60))
    await source.until_job()
    job.stop.set()
    with pytest.raises(RemudaError) as cancelled:
        await job.result()
    assert cancelled.value.reason is Reason.CANCELLED
    here, there = await source.view(), await source.view("b")
    assert here is not None
    assert (here.power_state, there) == ("RUNNING", None)
    assert source.left == []


async def test_at_its_deadline_the_source_gives_up_by_itself(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    error = await source.failure(start(timeout=0.3))
    assert error.reason is Reason.MIGRATION_TIMEOUT
    here = await source.view()
    assert here is not None
    assert here.power_state == "RUNNING"


async def test_the_steps_own_deadline_does_not_end_a_migration(source: Source) -> None:
    """It is the leader's patience with one call."""
    source.fabric.timings = FakeTimings(migrate_memory=0.5)
    request = start(timeout=60)
    request.key.deadline.FromMilliseconds(50)
    job, _ = source.migrations.start_or_join(request)
    await job.result()
    assert (await source.view()) is not None


async def test_a_guest_that_dirties_too_much_is_paused_at_the_deadline_if_that_is_allowed(
    source: Source,
) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    job, _ = source.migrations.start_or_join(start(timeout=0.3, pause=True))
    await job.result()
    there = await source.view("b")
    assert there is not None
    assert there.active  # whether it is to run there is the leader's to say
    assert source.left == []


async def test_a_guest_paused_for_the_migration_goes_on_when_that_fails(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER, switch_over=60)
    job, _ = source.migrations.start_or_join(start(timeout=0.3, pause=True))

    async def paused() -> bool:
        view = await source.view()
        return view is not None and view.power_state == "PAUSED"

    await wait_for(paused, timeout=60)
    await FakeHypervisor(source.fabric, "b").destroy(INSTANCE)
    with pytest.raises(RemudaError):
        await job.result()
    view = await source.view()
    assert view is not None
    assert (view.power_state, view.job) == ("RUNNING", "NONE")
    assert source.left == []


async def test_a_guest_that_its_owner_had_paused_stays_paused_when_the_migration_fails(
    source: Source,
) -> None:
    await source.hypervisor.pause(INSTANCE)
    source.fabric.timings = FakeTimings(migrate_memory=30)
    error = await source.failure(start(timeout=0.3))
    assert error.reason is Reason.MIGRATION_TIMEOUT
    view = await source.view()
    assert view is not None
    assert view.power_state == "PAUSED"


async def test_an_agent_that_ends_leaves_the_job_to_the_next_one(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=0.8, switch_over=0.02)
    source.migrations.start_or_join(start(timeout=60))
    await source.until_job()
    began = source.migrations.milestones(OPERATION)[0].time.ToNanoseconds() / 1e9
    await source.jobs.close(0)
    assert source.left == [f"{INSTANCE}.migration"]
    again = source.restarted()
    await again.migrations.adopt()
    job, joined = again.migrations.start_or_join(start(timeout=60))
    assert joined
    await job.result()
    assert again.migrations.ended(OPERATION).downtime_ms == 20
    assert again.kinds[0] == "JOB_STARTED"
    assert again.migrations.milestones(OPERATION)[0].time.ToNanoseconds() / 1e9 == pytest.approx(
        began, abs=0.01
    )
    assert again.left == []


async def test_a_restarted_agent_keeps_the_deadline_that_was_running(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    source.migrations.start_or_join(start(timeout=30))
    await source.until_job()
    await source.jobs.close(0)
    path = source.directory / f"{INSTANCE}.migration"
    os.utime(path, (time.time() - 31, time.time() - 31))
    again = source.restarted()
    await again.migrations.adopt()
    error = await again.failure(start(timeout=30))
    assert error.reason is Reason.MIGRATION_TIMEOUT
    view = await again.view()
    assert view is not None
    assert (view.power_state, view.job) == ("RUNNING", "NONE")


async def test_parameters_that_cannot_be_read_do_not_keep_the_agent_from_starting(source: Source) -> None:
    source.directory.mkdir()
    (source.directory / f"{INSTANCE}.migration").write_bytes(b"\xff\xff\xff")
    assert list(Parameters.left_in(source.directory)) == []
    await source.migrations.adopt()
    job, joined = source.migrations.start_or_join(start())
    assert not joined
    await job.result()


async def test_a_mark_left_by_another_migration_does_not_resume_anybody(source: Source) -> None:
    source.directory.mkdir()
    (source.directory / f"{INSTANCE}.paused").touch()
    assert not Parameters.keep(source.directory, start()).paused_by_us


async def test_the_guests_own_shutdown_on_the_way_is_told_as_that(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    job, _ = source.migrations.start_or_join(start(timeout=60))
    await source.until_job()
    source.fabric.power_button_inside("a", INSTANCE)
    with pytest.raises(RemudaError) as failed:
        await job.result()
    assert failed.value.reason is Reason.GUEST_STOPPED


async def test_silence_of_the_target_is_bounded_although_nothing_else_is_answered(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU waits for a dead connection with its main loop: no call about the guest comes back then."""
    monkeypatch.setattr("remuda_agent.migrating.BOUND_AGAIN_SECONDS", 0.01)
    bounded: list[str] = []

    async def bound(instance_id: InstanceId, *, peer: str) -> None:
        bounded.append(peer)

    monkeypatch.setattr(source.hypervisor, "bound_silence", bound)
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    job, _ = source.migrations.start_or_join(start(timeout=60))
    await source.until_job()
    gate = source.fabric.faults["a"].hang("job_stats")
    before = len(bounded)
    await wait_for(lambda: len(bounded) > before + 2, timeout=60)
    assert set(bounded) == {"b"}
    gate.set()
    job.stop.set()
    with pytest.raises(RemudaError):
        await job.result()


async def test_a_migration_goes_on_where_silence_cannot_be_bounded(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=0.05, switch_over=0.02)
    source.fabric.faults["a"].fail("bound_silence", times=5)
    job, _ = source.migrations.start_or_join(start())
    await job.result()
    assert source.migrations.ended(OPERATION).downtime_ms == 20


class Missed:
    """A hypervisor whose call misses that its guest has ended, until its connection breaks."""

    def __init__(self, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken: list[str] = []
        self._release = asyncio.Event()
        monkeypatch.setattr(source.hypervisor, "migrate", self._migrate)
        monkeypatch.setattr(source.hypervisor, "end_missed_call", self._end)
        monkeypatch.setattr("remuda_agent.migration_following.AWAY_SECONDS", 0.01)

    async def _migrate(self, request: MigrationRequest, *, begun: asyncio.Event) -> CompletedMigration:
        begun.set()
        await self._release.wait()
        raise hypervisor_error("domain is not running")

    async def _end(self, *, peer: str) -> None:
        self.broken.append(peer)
        self._release.set()


async def test_a_call_that_misses_the_end_of_its_guest_is_made_to_return(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = Missed(source, monkeypatch)
    job, _ = source.migrations.start_or_join(start(timeout=60))
    await asyncio.sleep(0.2)
    assert missed.broken == [], "the guest runs"
    await source.hypervisor.destroy(INSTANCE)
    with pytest.raises(RemudaError, match="not running"):
        await asyncio.wait_for(job.result(), 10)
    assert missed.broken == ["b"]

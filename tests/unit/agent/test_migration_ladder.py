"""The ladder of a running migration, carried out: what it does, tells, and keeps over a restart."""

import pytest
from remuda_agent import migration_steering
from remuda_agent.hypervisor.fake import FakeTimings
from remuda_agent.migrating import Migrations
from remuda_agent.settings import MigrationSettings
from remuda_core.errors import Reason
from remuda_core.ids import HostId
from remuda_core.migration import ladder
from remuda_core.testing.waiting import wait_for

from tests.unit.agent.conftest import NEVER, OPERATION, Source
from tests.unit.agent.test_migration_commands import details, order, restarted


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_steering, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(ladder, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(ladder, "STEP_SECONDS", 0.05)


async def test_the_ladder_raises_the_pause_until_it_is_enough(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER, enough_downtime_ms=350)
    asked = order(cap=640)
    asked.policy.max_downtime_ms = 400
    job, _ = source.migrations.start_or_join(asked)
    await job.result()
    told = [one.split(";")[0] for one in details(source, "DOWNTIME_RAISED")]
    assert told == ["100 ms to 200 ms", "200 ms to 400 ms"]
    assert "never less than" in details(source, "DOWNTIME_RAISED")[0]


async def test_an_operator_sets_the_first_pause_and_the_patience(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER, enough_downtime_ms=45)
    settings = MigrationSettings(first_downtime_ms=30, stall_seconds=0.2)
    patient = MigrationSettings()
    assert (patient.pace.first_downtime(300), patient.pace.stall) == (100, 40)
    migrations = Migrations(
        hypervisor=source.hypervisor,
        jobs=source.jobs,
        directory=source.directory,
        host_id=HostId("a"),
        pace=settings.pace,
    )
    asked = order(cap=640)
    asked.policy.max_downtime_ms = 50
    job, _ = migrations.start_or_join(asked)
    await job.result()
    told = [one for one in migrations.milestones(OPERATION) if one.type == "DOWNTIME_RAISED"]
    assert [one.detail.split(";")[0] for one in told] == ["30 ms to 50 ms"]


async def test_a_restarted_agent_raises_from_where_it_was(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The agent dies between the two steps, of which the second ends the job.
    monkeypatch.setattr(ladder, "STEP_SECONDS", 0.5)
    source.fabric.timings = FakeTimings(migrate_memory=NEVER, enough_downtime_ms=350)
    asked = order(cap=640)
    asked.policy.max_downtime_ms = 400
    source.migrations.start_or_join(asked)
    await wait_for(lambda: details(source, "DOWNTIME_RAISED") or None, timeout=60)
    again = await restarted(source)
    await again.migrations.start_or_join(asked)[0].result()
    told = [one.split(";")[0] for one in details(again, "DOWNTIME_RAISED")]
    assert told == ["100 ms to 200 ms", "200 ms to 400 ms"]


async def test_the_ladder_goes_on_to_post_copy_where_that_is_allowed(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    source.fabric.faults["a"].fail("start_post_copy", "too early", times=2)
    job, _ = source.migrations.start_or_join(order(cap=640, post_copy=True))
    await job.result()
    [why] = details(source, "POST_COPY_BEGUN")
    assert why.startswith("the ladder: memory: never less than")
    assert "DOWNTIME_RAISED" not in source.kinds  # 50 ms is all that is allowed, and what it began with


async def test_the_ladder_ends_with_an_abort_that_says_why(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    error = await source.failure(order(cap=640, timeout=1.0))
    assert error.reason is Reason.MIGRATION_TIMEOUT
    [why] = details(source, "JOB_ABORTED")
    assert why.startswith("no switch-over within 1 s; memory: never less than")
    assert why in str(error)
    assert source.left == []


async def test_the_ladder_pauses_at_the_deadline_and_says_so(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    job, _ = source.migrations.start_or_join(order(cap=640, timeout=0.5, pause=True))
    await job.result()
    [why] = details(source, "GUEST_PAUSED")
    assert why.startswith("the deadline: no switch-over within 0.5 s")

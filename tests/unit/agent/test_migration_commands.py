"""Commands to a running migration: answered once each, truthfully, over restarts too."""

import asyncio
from typing import Any

import pytest
from remuda.agent.v1.migration_pb2 import CancelMigration, MigrateRequest, StartMigration
from remuda.compute.v1.migration_pb2 import (
    CommandResult,
    MigrationProgress,
    PauseAndFinish,
    SetBandwidth,
    SetMaxDowntime,
    SwitchToPostCopy,
)
from remuda_agent import migration_obeying, migration_steering
from remuda_agent.hypervisor.fake import FakeTimings
from remuda_agent.jobs import Job
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.status import from_status
from remuda_core.testing.waiting import wait_for

from tests.unit.agent.conftest import INSTANCE, NEVER, OPERATION, Source, start

APPLIED, REFUSED = CommandResult.EFFECT_APPLIED, CommandResult.EFFECT_REFUSED
MEMORY, DISKS = MigrationProgress.PHASE_MEMORY, MigrationProgress.PHASE_DISKS
POST_COPY, FINISHING = MigrationProgress.PHASE_POST_COPY, MigrationProgress.PHASE_FINISHING


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_steering, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(migration_obeying, "WINDOW_SECONDS", 0.15)
    monkeypatch.setattr(migration_obeying, "PATIENCE_SECONDS", 0.8)


def order(*, cap: int = 8, post_copy: bool = False, shared: bool = True, **policy: Any) -> StartMigration:
    asked = start(timeout=policy.pop("timeout", 60), **policy)
    asked.policy.bandwidth_mib_s = cap
    asked.policy.allow_post_copy = post_copy
    asked.policy.max_downtime_ms = 50
    asked.shared_disks = shared
    return asked


async def begun(source: Source, asked: StartMigration, phase: str = "MEMORY") -> Job:
    job, _ = source.migrations.start_or_join(asked)
    wanted = MigrationProgress.Phase.Value(f"PHASE_{phase}")
    async with asyncio.timeout(5):
        async for progress in job.follow():
            if progress.migration.phase == wanted:
                return job
    raise AssertionError(f"it ended before phase {phase}")


def bandwidth(mib: int, name: str = "b") -> MigrateRequest:
    return MigrateRequest(command_id=name, set_bandwidth=SetBandwidth(mib_per_second=mib))


def downtime(ms: int, name: str = "d") -> MigrateRequest:
    return MigrateRequest(command_id=name, set_max_downtime=SetMaxDowntime(max_downtime_ms=ms))


def post_copy(name: str = "p") -> MigrateRequest:
    return MigrateRequest(command_id=name, switch_to_post_copy=SwitchToPostCopy())


def pause(name: str = "s") -> MigrateRequest:
    return MigrateRequest(command_id=name, pause_and_finish=PauseAndFinish())


def cancel(name: str = "c") -> MigrateRequest:
    return MigrateRequest(command_id=name, cancel=CancelMigration())


async def tell(source: Source, request: MigrateRequest) -> CommandResult:
    return await asyncio.wait_for(asyncio.shield(source.migrations.command(OPERATION, request)), 5)


def reason(result: CommandResult) -> Reason:
    return from_status(result.error).reason


def details(source: Source, kind: str) -> list[str]:
    return [one.detail for one in source.migrations.milestones(OPERATION) if one.type == kind]


async def rate_of(source: Source) -> float:
    stats = await source.hypervisor.job_stats(INSTANCE)
    assert stats is not None
    return stats.memory_bytes_per_second / (1 << 20)


# Each command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mib", [2, 20, 0])
async def test_a_cap_in_the_memory_phase_is_applied_and_seen(source: Source, mib: int) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    await begun(source, order())
    result = await tell(source, bandwidth(mib))
    assert (result.command_id, result.effect, result.phase) == ("b", APPLIED, MEMORY), result
    assert "MiB/s" in result.observed
    if mib:
        assert await rate_of(source) == mib
    assert details(source, "COMMAND_APPLIED") == [f"set_bandwidth: {result.observed}"]


@pytest.mark.parametrize("mib", [2, 20])
async def test_a_cap_that_the_job_does_not_heed_is_called_that(source: Source, mib: int) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER, heeds_bandwidth=False)
    await begun(source, order())
    result = await tell(source, bandwidth(mib))
    assert (result.effect, result.phase) == (CommandResult.EFFECT_NOT_EFFECTIVE, MEMORY)
    assert "the job sends" in result.observed
    assert details(source, "COMMAND_APPLIED") == []


async def test_a_cap_of_which_no_figure_tells_is_not_called_in_force(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    await begun(source, order())
    source.fabric.faults["a"].fail("job_stats", "it does not answer", times=999)
    result = await tell(source, bandwidth(20))
    assert (result.effect, "no figures" in result.observed) == (CommandResult.EFFECT_NOT_EFFECTIVE, True)


async def test_a_cap_for_disks_is_deferred_and_is_in_force_once_memory_begins(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_disks=0.8, migrate_memory=NEVER)
    await begun(source, order(cap=0, shared=False), "DISKS")
    result = await tell(source, bandwidth(3))
    assert (result.effect, result.phase) == (CommandResult.EFFECT_DEFERRED_TO_MEMORY_PHASE, DISKS)
    await wait_for(lambda: details(source, "COMMAND_APPLIED") or None, timeout=60)
    assert await rate_of(source) == 3


async def test_a_longer_pause_ends_a_migration_that_could_not_end(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER, enough_downtime_ms=900)
    job = await begun(source, order(cap=640))
    result = await tell(source, downtime(1000))
    assert (result.effect, result.observed) == (APPLIED, "at most 1000 ms")
    await job.result()


async def test_post_copy_lets_the_guest_go_on_at_the_target(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    job = await begun(source, order(cap=200, post_copy=True))
    result = await tell(source, post_copy())
    assert (result.effect, result.phase) == (APPLIED, POST_COPY)
    await job.result()
    there = await source.view("b")
    assert there is not None
    assert there.power_state == "RUNNING"
    assert details(source, "POST_COPY_BEGUN") == ["a command"]
    assert source.kinds.count("SOURCE_PAUSED") == 1
    assert source.left == []


async def test_post_copy_that_libvirt_calls_too_early_is_asked_for_again(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    source.fabric.faults["a"].fail("start_post_copy", "Enable postcopy before the start", times=3)
    job = await begun(source, order(cap=200, post_copy=True))
    assert (await tell(source, post_copy())).effect == APPLIED
    await job.result()


async def test_post_copy_that_libvirt_never_takes_is_refused_with_its_words(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    source.fabric.faults["a"].fail("start_post_copy", "userfaultfd is not available", times=999)
    await begun(source, order(post_copy=True))
    result = await tell(source, post_copy())
    assert (result.effect, reason(result)) == (REFUSED, Reason.HYPERVISOR_ERROR)
    assert "userfaultfd" in result.error.message
    # It is no post-copy: a cancel still ends it.
    assert (await tell(source, cancel())).effect == APPLIED


async def test_post_copy_that_cannot_be_looked_at_for_a_while_is_not_called_ineffective(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    real = source.hypervisor.start_post_copy

    async def and_busy_with_it(*args: Any) -> None:
        await real(*args)
        source.fabric.faults["a"].fail("job_stats", "cannot acquire state change lock", times=50)

    monkeypatch.setattr(source.hypervisor, "start_post_copy", and_busy_with_it)
    job = await begun(source, order(cap=20, post_copy=True))
    result = await tell(source, post_copy())
    assert (result.effect, result.phase) == (APPLIED, POST_COPY), result
    await job.result()


async def test_a_pause_is_on_disk_before_the_guest_stands_still(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    gate = source.fabric.faults["a"].hang("pause")
    job = await begun(source, order())
    answer = source.migrations.command(OPERATION, pause())
    await wait_for(lambda: f"{INSTANCE}.paused" in source.left or None, timeout=60)
    view = await source.view()
    assert view is not None
    assert (view.power_state, answer.done()) == ("RUNNING", False)
    gate.set()
    await job.result()
    assert (await answer).effect == APPLIED
    assert details(source, "GUEST_PAUSED") == ["a command"]
    assert source.left == []


async def test_a_cancel_is_answered_when_it_has_had_its_way(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    job = await begun(source, order())
    result = await tell(source, cancel())
    assert (result.effect, result.command_id) == (APPLIED, "c")
    with pytest.raises(RemudaError) as ended:
        await job.result()
    assert ended.value.reason is Reason.CANCELLED
    view = await source.view()
    assert view is not None
    assert view.power_state == "RUNNING"
    assert details(source, "JOB_ABORTED") == ["a cancel"]
    assert source.left == []


async def test_a_cancel_does_not_wait_for_the_proof_of_another_command(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER, heeds_bandwidth=False)
    await begun(source, order())
    capped = source.migrations.command(OPERATION, bandwidth(2))
    assert (await tell(source, cancel())).effect == APPLIED
    # libvirt had taken it by then, or the cancel was quicker: either is told.
    assert (await capped).effect in (APPLIED, REFUSED)


# Phases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [post_copy(), pause()])
async def test_what_needs_memory_is_refused_while_disks_are_copied(
    source: Source, request_: MigrateRequest
) -> None:
    source.fabric.timings = FakeTimings(migrate_disks=30)
    await begun(source, order(shared=False, post_copy=True), "DISKS")
    result = await tell(source, request_)
    assert (result.effect, result.phase, reason(result)) == (REFUSED, DISKS, Reason.COMMAND_REFUSED)
    assert from_status(result.error).metadata["phase"] == "DISKS"
    assert source.kinds == ["JOB_STARTED"]


async def test_post_copy_that_was_not_allowed_at_the_start_is_refused(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    await begun(source, order())
    result = await tell(source, post_copy())
    assert (result.effect, "allow_post_copy" in result.error.message) == (REFUSED, True)


@pytest.mark.parametrize("request_", [bandwidth(3), downtime(900), post_copy("q"), pause(), cancel()])
async def test_in_post_copy_every_command_is_refused_and_nothing_ends_it(
    source: Source, request_: MigrateRequest
) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    job = await begun(source, order(cap=40, post_copy=True))
    assert (await tell(source, post_copy())).effect == APPLIED
    result = await tell(source, request_)
    assert (result.effect, result.phase) == (REFUSED, POST_COPY)
    await job.result()


async def test_in_post_copy_neither_the_deadline_nor_an_undo_ends_the_job(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    job = await begun(source, order(cap=30, post_copy=True, timeout=0.6))
    assert (await tell(source, post_copy())).effect == APPLIED
    aborts = source.fabric.faults["a"]
    aborts.fail("abort_job", "nobody may call this", times=1)
    await asyncio.sleep(0.7)
    job.stop.set()
    await job.result()
    with pytest.raises(RemudaError, match="nobody may call"):
        await source.hypervisor.abort_job(INSTANCE)


async def test_a_post_copy_that_breaks_is_left_as_it_is(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER, peer_timeout=0.1)
    job = await begun(source, order(cap=1, post_copy=True))
    assert (await tell(source, post_copy())).effect == APPLIED
    source.fabric.cut("b")
    with pytest.raises(RemudaError):
        await asyncio.wait_for(job.result(), 5)
    here, there = await source.view(), await source.view("b")
    assert here is not None
    assert there is not None
    assert (here.power_state, here.reason, there.reason) == ("PAUSED", "postcopy_failed", "postcopy_failed")
    with pytest.raises(RemudaError):
        await source.hypervisor.resume(INSTANCE)


async def test_a_command_that_comes_before_anything_is_copied_waits_for_its_phase(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    gate = source.fabric.faults["a"].hang("migrate")
    source.migrations.start_or_join(order())
    early = source.migrations.command(OPERATION, bandwidth(2))
    await asyncio.sleep(0.1)
    assert not early.done()
    gate.set()
    assert (await asyncio.wait_for(early, 5)).effect == APPLIED


async def test_a_command_after_the_end_is_refused(source: Source) -> None:
    job, _ = source.migrations.start_or_join(order(cap=0))
    await job.result()
    result = await tell(source, bandwidth(2))
    assert (result.effect, result.phase) == (REFUSED, FINISHING)


async def test_commands_that_still_wait_at_the_end_are_refused(source: Source) -> None:
    gate = source.fabric.faults["a"].hang("migrate")
    job, _ = source.migrations.start_or_join(order())
    waiting = [source.migrations.command(OPERATION, bandwidth(n, f"b{n}")) for n in range(1, 70)]
    await asyncio.sleep(0.1)
    refused_at_once = [one for one in waiting if one.done()]
    assert len(refused_at_once) == 5
    job.stop.set()
    with pytest.raises(RemudaError):
        await job.result()
    assert {(await one).effect for one in waiting} == {REFUSED}
    gate.set()


# Once ---------------------------------------------------------------------------------------


async def test_a_repeated_command_is_answered_again_and_not_carried_out_again(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    calls, real = [], source.hypervisor.set_max_downtime

    async def counted(*args: Any, **named: Any) -> int:
        calls.append(named)
        return await real(*args, **named)

    monkeypatch.setattr(source.hypervisor, "set_max_downtime", counted)
    await begun(source, order())
    answers = [source.migrations.command(OPERATION, downtime(70)) for _ in range(3)]
    results = [await one for one in answers] + [await tell(source, downtime(70))]
    assert {one.observed for one in results} == {"at most 70 ms"}
    assert calls == [{"milliseconds": 70}]
    assert len(details(source, "COMMAND_APPLIED")) == 1


async def test_another_command_under_a_known_id_is_refused(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    await begun(source, order())
    await tell(source, downtime(70))
    result = await tell(source, downtime(80))
    assert (result.effect, reason(result)) == (REFUSED, Reason.REQUEST_ID_REUSED)


async def test_a_hypervisor_that_is_away_for_a_moment_refuses_nothing(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    source.fabric.faults["a"].fail("set_max_downtime", "connection closed", times=3)
    await begun(source, order())
    assert (await tell(source, downtime(70))).effect == APPLIED


# Restart ------------------------------------------------------------------------------------


async def restarted(source: Source) -> Source:
    await source.jobs.close(0)
    again = source.restarted()
    await again.migrations.adopt()
    return again


async def test_a_restarted_agent_takes_commands_and_remembers_its_answers(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    await begun(source, order())
    first = await tell(source, downtime(70))
    waiting = source.migrations.command(OPERATION, bandwidth(2))
    again = await restarted(source)
    assert waiting.cancelled()
    repeated = await tell(again, downtime(70))
    assert repeated == first
    assert (await tell(again, downtime(80))).effect == REFUSED
    assert (await tell(again, bandwidth(2))).effect == APPLIED
    assert await rate_of(again) == 2
    kinds = [kind for kind in again.kinds if kind == "COMMAND_APPLIED"]
    assert kinds == ["COMMAND_APPLIED"] * 2
    job, joined = again.migrations.start_or_join(order())
    assert joined
    assert (await tell(again, cancel())).effect == APPLIED
    with pytest.raises(RemudaError):
        await job.result()


async def test_a_cap_that_waits_for_memory_survives_the_agent(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_disks=0.8, migrate_memory=NEVER)
    await begun(source, order(cap=0, shared=False), "DISKS")
    await tell(source, bandwidth(3))
    # As if libvirt had forgotten it with its own restart.
    await source.hypervisor.set_bandwidth(INSTANCE, mib_per_second=50, post_copy=False)
    again = await restarted(source)
    await wait_for(lambda: details(again, "COMMAND_APPLIED") or None, timeout=60)
    assert await rate_of(again) == 3


async def test_a_pause_that_was_noted_and_not_made_is_made_after_a_restart(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    source.fabric.faults["a"].hang("pause")
    await begun(source, order())
    source.migrations.command(OPERATION, pause())
    await wait_for(lambda: f"{INSTANCE}.paused" in source.left or None, timeout=60)
    await source.jobs.close(0)
    source.fabric.faults["a"].hang("pause").set()
    again = source.restarted()
    await again.migrations.adopt()
    await wait_for(lambda: source.left == [] or None, timeout=60)
    there = await again.view("b")
    assert there is not None


async def test_a_ledger_that_cannot_be_read_keeps_nobody_from_steering(source: Source) -> None:
    source.fabric.timings = FakeTimings(migrate_memory=NEVER)
    await begun(source, order())
    await tell(source, downtime(70))
    await source.jobs.close(0)
    (source.directory / f"{INSTANCE}.steering").write_text('{"entries": 3}')
    again = source.restarted()
    await again.migrations.adopt()
    assert (await tell(again, downtime(90))).effect == APPLIED

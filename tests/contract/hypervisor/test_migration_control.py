"""A migration that is steered while it runs: what the hypervisor is told, heeds, and what is answered.

However busy its guest, a real job may be through before a command reaches it: then it is set up again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1.common_pb2 import LeaderRef, StepKey
from remuda.agent.v1.migration_pb2 import MigrateRequest, MigrationPolicy, MigrationTarget, StartMigration
from remuda.compute.v1.migration_pb2 import (
    CommandResult,
    MigrationProgress,
    PauseAndFinish,
    SetBandwidth,
    SetMaxDowntime,
    SwitchToPostCopy,
)
from remuda_agent.hypervisor import DomainDescription, PowerState
from remuda_agent.jobs import Job, JobTable
from remuda_agent.migrating import Migrations
from remuda_core.errors import RemudaError
from remuda_core.ids import HostId
from remuda_core.migration import ladder
from remuda_core.testing.premise import PremiseLost, set_up_again
from remuda_core.testing.waiting import wait_for

from tests.contract.hypervisor.busy import JobSettings, fill_disk, job_settings, keep_busy

if TYPE_CHECKING:
    from tests.contract.hypervisor.conftest import Hosts

QUICK, SLOW = 16, 2
"""MiB/s: a first pass takes seconds at the one; the guest of `keep_busy` never gets through at the other."""
LITTLE = 12 << 20
PATIENCE = 120.0
ENOUGH_RAISED_MS = 64
"""A pause in which nobody would send what the guest of `keep_busy` rewrites."""
LEAVING = (MigrationProgress.PHASE_SWITCH_OVER, MigrationProgress.PHASE_FINISHING)


@dataclass(kw_only=True)
class Moving:
    """A migration of a busy guest as the agent of `a` steers it."""

    hosts: Hosts
    guest: DomainDescription
    start: StartMigration
    migrations: Migrations
    job: Job
    seen: list[MigrationProgress] = field(default_factory=list)

    async def until(self, phase: MigrationProgress.Phase.ValueType, *, iteration: int = 0) -> None:
        await self.until_seen(lambda one: one.phase == phase and one.iteration >= iteration)

    async def until_seen(self, right: Callable[[MigrationProgress], bool]) -> None:
        """PremiseLost when the job has ended well without such a figure."""

        async def there() -> bool:
            assert self.job.task is not None
            over = self.job.task.done()
            if not any(right(one) for one in self.seen):
                if over:
                    await self.lost("its figures were looked at")
                return False
            return True

        await wait_for(there, timeout=PATIENCE, last_status=lambda: self.seen[-1:])

    async def nearly_through(self) -> None:
        """With its first pass: at a quick rate any moment after that can be its last."""
        await self.until_seen(
            lambda one: one.iteration >= 2 or (one.iteration == 1 and one.memory_remaining_bytes <= LITTLE)
        )

    async def lost(self, before: str) -> NoReturn:
        """The job was through by itself. Raises what it raised when it was not."""
        await asyncio.wait_for(self.job.result(), PATIENCE)
        raise PremiseLost(f"the job was over before {before}: {self.seen[-1:]}")

    async def settings(self) -> JobSettings:
        try:
            return await job_settings(self.hosts, self.guest)
        except Exception:
            view = await self.hosts.a.view(self.guest.instance_id)
            if view is None or not view.active:
                await self.lost("it was asked for its settings")
            raise

    async def command(self, request: MigrateRequest) -> CommandResult:
        request.command_id = str(request.WhichOneof("command"))
        answer = self.migrations.command(self.start.key.operation_id, request)
        return await asyncio.wait_for(asyncio.shield(answer), PATIENCE)

    async def told(self, request: MigrateRequest) -> CommandResult:
        """The result of a command that found memory being copied, and left it so if it is a cap."""
        result = await self.command(request)
        refused = result.effect == CommandResult.EFFECT_REFUSED
        if result.phase in LEAVING and (refused or request.HasField("set_bandwidth")):
            await self.lost(f"{request.WhichOneof('command')} had its effect")
        return result

    async def arrived(self) -> None:
        await asyncio.wait_for(self.job.result(), PATIENCE)
        await self.hosts.b.resume(self.guest.instance_id)  # one that was paused for it
        there = await self.hosts.b.view(self.guest.instance_id)
        assert there is not None
        assert there.power_state is PowerState.RUNNING

    @property
    def timeline(self) -> dict[str, str]:
        known = self.migrations.milestones(self.start.key.operation_id)
        return {one.type: one.detail for one in known}


def ordered(
    hosts: Hosts, guest: DomainDescription, policy: MigrationPolicy, *, shared: bool
) -> StartMigration:
    request = hosts.request(guest, shared=shared)
    timeout = Duration()
    timeout.FromSeconds(200)
    policy.timeout.CopyFrom(timeout)
    return StartMigration(
        key=StepKey(
            operation_id=request.operation_id,
            step="guest_moved",
            direction=StepKey.DIRECTION_DO,
            instance_id=guest.instance_id,
            epoch=guest.epoch,
            leader=LeaderRef(epoch=1),
        ),
        target_epoch=request.target_epoch,
        target=MigrationTarget(
            hostname=request.target_hostname, address=request.target_address, transport=request.transport
        ),
        policy=policy,
        shared_disks=shared,
    )


@contextlib.asynccontextmanager
async def moving(
    hosts: Hosts, directory: Path, policy: MigrationPolicy, *, shared: bool = True
) -> AsyncIterator[Moving]:
    guest = hosts.described(shared=shared, bootable=True)
    await hosts.a.define(guest)
    await hosts.a.start(guest.instance_id)
    await hosts.wait_booted(guest)
    await keep_busy(hosts, guest)
    if not shared:
        await fill_disk(hosts, guest)
        hosts.receive(guest)
    jobs, start = JobTable(), ordered(hosts, guest, policy, shared=shared)
    migrations = Migrations(hypervisor=hosts.a, jobs=jobs, directory=directory, host_id=HostId("a"))
    job, _ = migrations.start_or_join(start)
    made = Moving(hosts=hosts, guest=guest, start=start, migrations=migrations, job=job)

    async def watch() -> None:
        async for progress in job.follow():
            made.seen.append(progress.migration)

    watching = asyncio.create_task(watch())
    try:
        yield made
    finally:
        job.stop.set()
        with contextlib.suppress(RemudaError):
            await job.result()
        await watching
        # The guest may come again.
        for host in (hosts.a, hosts.b):
            await host.destroy(guest.instance_id)
            await host.undefine(guest.instance_id)


async def test_a_job_is_told_what_it_is_allowed(hosts: Hosts) -> None:
    guest = hosts.described(shared=True, bootable=True)
    await hosts.a.define(guest)
    await hosts.a.start(guest.instance_id)
    await hosts.wait_booted(guest)
    await keep_busy(hosts, guest)
    request = replace(
        hosts.request(guest, shared=True),
        bandwidth_mib_s=SLOW,
        max_downtime_ms=150,
        auto_converge=True,
        allow_post_copy=True,
    )
    going = asyncio.create_task(hosts.a.migrate(request))

    async def sends() -> bool:
        stats = await hosts.a.job_stats(guest.instance_id)
        return stats is not None and stats.memory_processed_bytes > 0

    await wait_for(sends, timeout=60)
    told = await job_settings(hosts, guest)
    assert (told.auto_converge, told.post_copy) == (True, True)
    assert (told.cap, told.post_copy_cap, told.downtime_ms) == (SLOW, SLOW, 150)
    await hosts.a.set_bandwidth(guest.instance_id, mib_per_second=5, post_copy=True)
    assert await hosts.a.set_max_downtime(guest.instance_id, milliseconds=70) == 70
    told = await job_settings(hosts, guest)
    assert (told.cap, told.post_copy_cap, told.downtime_ms) == (5, 5, 70)
    await hosts.a.abort_job(guest.instance_id)
    with pytest.raises(RemudaError):
        await going
    plain = asyncio.create_task(hosts.a.migrate(replace(request, auto_converge=False, allow_post_copy=False)))
    await wait_for(sends, timeout=60)
    told = await job_settings(hosts, guest)
    assert (told.auto_converge, told.post_copy) == (False, False)
    with pytest.raises(RemudaError):
        await hosts.a.start_post_copy(guest.instance_id)
    await hosts.a.abort_job(guest.instance_id)
    with pytest.raises(RemudaError):
        await plain


@set_up_again
async def test_a_migration_that_cannot_end_ends_when_the_ladder_allows_a_longer_pause(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "FIRST_DOWNTIME_MS", 1)
    monkeypatch.setattr(ladder, "STALL_SECONDS", 2.5)
    monkeypatch.setattr(ladder, "STEP_SECONDS", 0.1)
    policy = MigrationPolicy(bandwidth_mib_s=QUICK, max_downtime_ms=6000)
    async with moving(hosts, tmp_path, policy) as guest:
        await guest.until(MigrationProgress.PHASE_MEMORY)
        # The ladder judges passes: there was none yet.
        assert (await guest.settings()).downtime_ms == 1
        await guest.nearly_through()
        slowed = await guest.told(MigrateRequest(set_bandwidth=SetBandwidth(mib_per_second=SLOW)))
        assert slowed.effect == CommandResult.EFFECT_APPLIED, slowed
        await guest.arrived()
    raised = guest.timeline.get("DOWNTIME_RAISED", "1 ms to 1 ms;")
    if int(raised.split(" ms to ")[1].split(" ms;")[0]) < ENOUGH_RAISED_MS:
        raise PremiseLost(f"it ended without a pause that is long enough: {raised}")
    assert "GUEST_PAUSED" not in guest.timeline


@set_up_again
async def test_a_command_for_a_longer_pause_ends_a_migration_that_could_not(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "FIRST_DOWNTIME_MS", 1)
    policy = MigrationPolicy(bandwidth_mib_s=QUICK, max_downtime_ms=1)
    async with moving(hosts, tmp_path, policy) as guest:
        await guest.nearly_through()
        slowed = await guest.told(MigrateRequest(set_bandwidth=SetBandwidth(mib_per_second=SLOW)))
        assert slowed.effect == CommandResult.EFFECT_APPLIED, slowed
        longer = await guest.told(MigrateRequest(set_max_downtime=SetMaxDowntime(max_downtime_ms=6000)))
        assert longer.effect == CommandResult.EFFECT_APPLIED, longer
        await guest.arrived()


@set_up_again
async def test_a_cap_is_deferred_while_disks_are_copied_and_in_force_in_memory(
    hosts: Hosts, tmp_path: Path
) -> None:
    policy = MigrationPolicy(bandwidth_mib_s=SLOW, max_downtime_ms=1)
    async with moving(hosts, tmp_path, policy, shared=False) as guest:
        await guest.until(MigrationProgress.PHASE_DISKS)
        # Together, so that both find the same phase.
        refused, early = await asyncio.gather(
            guest.command(MigrateRequest(pause_and_finish=PauseAndFinish())),
            guest.command(MigrateRequest(set_bandwidth=SetBandwidth(mib_per_second=QUICK))),
        )
        if MigrationProgress.PHASE_DISKS not in (refused.phase, early.phase):
            raise PremiseLost(f"the disks were copied before the commands came: {guest.seen[-1:]}")
        assert refused.effect == CommandResult.EFFECT_REFUSED, refused
        assert early.effect == CommandResult.EFFECT_DEFERRED_TO_MEMORY_PHASE, early
        assert (refused.phase, early.phase) == (MigrationProgress.PHASE_DISKS,) * 2
        # In its first pass, which no job can end before it has sent everything once.
        await guest.until_seen(
            lambda one: (
                one.iteration > 0
                and one.throughput_bytes_per_second > 3 * SLOW << 20
                and "COMMAND_APPLIED" in guest.timeline
            )
        )
        assert (await guest.settings()).cap == QUICK


@set_up_again
async def test_in_memory_a_cap_is_proven_by_what_the_job_sends(hosts: Hosts, tmp_path: Path) -> None:
    policy = MigrationPolicy(bandwidth_mib_s=SLOW, max_downtime_ms=1)
    async with moving(hosts, tmp_path, policy) as guest:
        await guest.until(MigrationProgress.PHASE_MEMORY)
        result = await guest.told(MigrateRequest(set_bandwidth=SetBandwidth(mib_per_second=6)))
        assert (result.effect, result.phase) == (
            CommandResult.EFFECT_APPLIED,
            MigrationProgress.PHASE_MEMORY,
        ), result
        assert (await guest.settings()).cap == 6


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "block"])
@set_up_again
async def test_a_busy_guest_goes_on_at_the_target_when_post_copy_is_commanded(
    hosts: Hosts, tmp_path: Path, shared: bool
) -> None:
    policy = MigrationPolicy(bandwidth_mib_s=8, max_downtime_ms=1, allow_post_copy=True)
    async with moving(hosts, tmp_path, policy, shared=shared) as guest:
        await guest.until(MigrationProgress.PHASE_MEMORY)
        result = await guest.told(MigrateRequest(switch_to_post_copy=SwitchToPostCopy()))
        assert result.effect == CommandResult.EFFECT_APPLIED, result
        # What is left of so small a guest may be over there before anybody has looked.
        assert result.phase in (MigrationProgress.PHASE_POST_COPY, MigrationProgress.PHASE_FINISHING)

        async def goes_on() -> bool:
            there = await hosts.b.view(guest.guest.instance_id)
            return there is not None and there.power_state is PowerState.RUNNING

        await wait_for(goes_on, timeout=60)
        cancel = MigrateRequest(command_id="no-way-back")
        cancel.cancel.SetInParent()
        refused = await guest.migrations.command(guest.start.key.operation_id, cancel)
        assert refused.effect == CommandResult.EFFECT_REFUSED
        await guest.arrived()
    assert guest.timeline["POST_COPY_BEGUN"] == "a command"


@set_up_again
async def test_a_busy_guest_is_paused_by_a_command_and_arrives(hosts: Hosts, tmp_path: Path) -> None:
    policy = MigrationPolicy(bandwidth_mib_s=QUICK, max_downtime_ms=1)
    async with moving(hosts, tmp_path, policy) as guest:
        await guest.nearly_through()
        # Under this cap it does not end by itself while the command is on its way.
        await guest.told(MigrateRequest(set_bandwidth=SetBandwidth(mib_per_second=SLOW)))
        result = await guest.told(MigrateRequest(pause_and_finish=PauseAndFinish()))
        assert result.effect == CommandResult.EFFECT_APPLIED, result
        await guest.arrived()
    assert guest.timeline["GUEST_PAUSED"] == "a command"
    assert not list(tmp_path.iterdir())

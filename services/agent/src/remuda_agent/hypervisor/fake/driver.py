"""A hypervisor without guests, with libvirt's answers, for scale and for the tests of everything above it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, InstanceId, OperationId

from remuda_agent.hypervisor.backups import BackupRequest, Guard
from remuda_agent.hypervisor.facts import CpuVerdict, GuestFacts
from remuda_agent.hypervisor.fake import backups, moves, preflight, steering
from remuda_agent.hypervisor.fake.fabric import FakeFabric
from remuda_agent.hypervisor.fake.world import MACHINE_TYPES, FakeDomain, World
from remuda_agent.hypervisor.model import (
    CompletedMigration,
    DomainDescription,
    DomainView,
    EventKind,
    HypervisorCapabilities,
    HypervisorEvent,
    MigrationJobStats,
    MigrationRequest,
    hypervisor_error,
)

DEFAULT_CAPABILITIES = HypervisorCapabilities(
    driver="fake",
    vcpus=64,
    memory_mib=256 * 1024,
    domain_type="qemu",
    domain_type_reason="nothing runs here",
    architecture="x86_64",
    cpu_model="qemu64",
    libvirt_version=9_000_000,
    qemu_version=7_002_022,
    machine_types=MACHINE_TYPES,
    default_machine_type=MACHINE_TYPES[-1],
)


class FakeHypervisor:
    """One connection to one host of the fabric. Drop it and make another: the host's domains stay."""

    def __init__(
        self, fabric: FakeFabric, host: str, *, capabilities: HypervisorCapabilities = DEFAULT_CAPABILITIES
    ) -> None:
        self._fabric = fabric
        self._host = host
        self._capabilities = capabilities
        fabric.add_host(host)

    def close(self) -> None:
        """Iterators over events end."""
        self._fabric.fanout(self._host).close()

    async def capabilities(self) -> HypervisorCapabilities:
        await self._before("capabilities")
        with self._fabric.transaction() as world:
            world.host(self._host)
        return self._capabilities

    async def define(self, description: DomainDescription) -> DomainView:
        await self._before("define")
        machine = description.machine_type or self._capabilities.default_machine_type
        if machine not in self._capabilities.machine_types:
            raise hypervisor_error(
                f"unsupported configuration: Emulator does not support machine '{machine}'"
            )
        known = replace(description, machine_type=machine)
        with self._changing("define") as world:
            domains = world.host(self._host).domains
            domain = domains.setdefault(description.instance_id, FakeDomain(definition=known))
            domain.definition = known
            world.tell(self._host, EventKind.DEFINED, description.instance_id, "added")
            view = world.view(self._host, description.instance_id)
            assert view is not None
        return view

    async def undefine(self, instance_id: InstanceId) -> None:
        await self._before("undefine")
        with self._changing("undefine") as world:
            domain = world.host(self._host).domains.get(instance_id)
            if domain is None:
                return
            if domain.live is not None:
                raise hypervisor_error(f"domain {instance_id} is active: its definition is not removed")
            del world.host(self._host).domains[instance_id]
            world.tell(self._host, EventKind.UNDEFINED, instance_id, "removed")

    async def start(self, instance_id: InstanceId) -> None:
        await self._before("start")
        with self._changing("start") as world:
            domain = world.domain(self._host, instance_id)
            if domain.live is not None:
                return
            domain.live, domain.paused, domain.reason = domain.definition, False, "booted"
            domain.started_at, domain.completed = self._fabric.clock.now(), None
            world.tell(self._host, EventKind.STARTED, instance_id, "booted")

    async def shutdown(self, instance_id: InstanceId) -> None:
        await self._before("shutdown")
        timings, now = self._fabric.timings, self._fabric.clock.now()
        with self._changing("shutdown") as world:
            domain = world.domain(self._host, instance_id)
            hears = not domain.paused and now >= domain.started_at + timings.boot
            if domain.live is not None and hears and domain.off_at is None:
                domain.off_at = now + timings.shutdown
                world.stopping.add((self._host, instance_id))

    async def destroy(self, instance_id: InstanceId) -> None:
        await self._before("destroy")
        with self._changing("destroy") as world:
            world.host(self._host)
            world.power_off(self._host, instance_id, reason="destroyed")

    async def pause(self, instance_id: InstanceId) -> None:
        await self._before("pause")
        with self._changing("pause") as world:
            domain = self._running(world, instance_id)
            if domain.paused:
                return
            domain.paused, domain.reason = True, "user"
            if job := world.job_of(self._host, instance_id):
                job.paused_at = self._fabric.clock.now()
            world.tell(self._host, EventKind.SUSPENDED, instance_id, "paused")

    async def resume(self, instance_id: InstanceId) -> None:
        await self._before("resume")
        with self._changing("resume") as world:
            domain = self._running(world, instance_id)
            job = world.job_of(self._host, instance_id)
            split = domain.reason in ("postcopy", "postcopy_failed")
            if split or domain.incoming or (job is not None and job.switched):
                raise hypervisor_error("Requested operation is not valid: the domain is being migrated")
            if not domain.paused:
                return
            domain.paused, domain.reason = False, "unpaused"
            if job is not None:
                job.paused_at = None
            world.tell(self._host, EventKind.RESUMED, instance_id, "unpaused")

    async def view(self, instance_id: InstanceId) -> DomainView | None:
        await self._before("view")
        with self._changing("view") as world:
            return world.view(self._host, instance_id)

    async def domains(self) -> list[DomainView]:
        await self._before("domains")
        with self._changing("domains") as world:
            views = (world.view(self._host, key) for key in sorted(world.host(self._host).domains))
            return [view for view in views if view is not None]

    async def set_epoch(self, instance_id: InstanceId, *, epoch: Epoch, operation_id: OperationId) -> None:
        await self._before("set_epoch")
        with self._changing("set_epoch") as world:
            world.stamp(self._host, instance_id, epoch, operation_id)

    async def migrate(
        self, request: MigrationRequest, *, begun: asyncio.Event | None = None
    ) -> CompletedMigration:
        await self._before("migrate")
        if begun is not None:
            begun.set()
        after, message = self._fabric.migration_failure.pop(self._host, (float("inf"), ""))
        async with self._fabric.awake():
            with self._fabric.transaction() as world:
                number = moves.begin(
                    world,
                    self._host,
                    request,
                    now=self._fabric.clock.now(),
                    timings=self._fabric.timings,
                    fail_after=after,
                    fail_message=message,
                )
            while True:
                with self._fabric.transaction() as world:
                    result = world.results.get(number)
                if result is not None:
                    break
                await self._fabric.change()
        self._fabric.faults[self._host].finished("migrate")
        if result.completed is not None:
            return result.completed
        reason = {"cancelled": Reason.CANCELLED, "guest_stopped": Reason.GUEST_STOPPED}.get(
            result.outcome, Reason.HYPERVISOR_ERROR
        )
        raise RemudaError(reason, f"the migration ended: {result.message}")

    async def job_stats(self, instance_id: InstanceId) -> MigrationJobStats | None:
        await self._before("job_stats")
        with self._changing("job_stats") as world:
            return moves.stats(world, self._host, instance_id, now=self._fabric.clock.now())

    async def completed_stats(self, instance_id: InstanceId) -> CompletedMigration | None:
        await self._before("completed_stats")
        with self._changing("completed_stats") as world:
            return world.domain(self._host, instance_id).completed

    async def abort_job(self, instance_id: InstanceId) -> None:
        await self._before("abort_job")
        with self._changing("abort_job") as world:
            moves.abort(world, self._host, instance_id)

    async def bound_silence(self, instance_id: InstanceId, *, peer: str) -> None:
        """There are no connections."""
        await self._before("bound_silence")

    async def end_missed_call(self, *, peer: str) -> None:
        """It misses nothing."""
        await self._before("end_missed_call")

    async def set_bandwidth(self, instance_id: InstanceId, *, mib_per_second: int, post_copy: bool) -> None:
        await self._before("set_bandwidth")
        with self._changing("set_bandwidth") as world:
            now = self._fabric.clock.now()
            steering.set_bandwidth(
                world, self._host, instance_id, mib_per_second, post_copy=post_copy, now=now
            )

    async def set_max_downtime(self, instance_id: InstanceId, *, milliseconds: int) -> int:
        await self._before("set_max_downtime")
        with self._changing("set_max_downtime") as world:
            now = self._fabric.clock.now()
            return steering.set_max_downtime(world, self._host, instance_id, milliseconds, now=now)

    async def start_post_copy(self, instance_id: InstanceId) -> None:
        await self._before("start_post_copy")
        with self._changing("start_post_copy") as world:
            steering.start_post_copy(world, self._host, instance_id, now=self._fabric.clock.now())

    async def guest_agent_ping(self, instance_id: InstanceId, *, timeout: float) -> bool:
        await self._before("guest_agent_ping")
        with self._changing("guest_agent_ping") as world:
            domain = world.domain(self._host, instance_id)
            booted = domain.started_at + self._fabric.timings.boot <= self._fabric.clock.now() + timeout
            return domain.live is not None and not domain.paused and domain.guest_agent and booted

    async def describe_guest(self, instance_id: InstanceId) -> GuestFacts:
        await self._before("describe_guest")
        with self._changing("describe_guest") as world:
            return preflight.describe(world, self._host, instance_id, capabilities=self._capabilities)

    async def compare_cpu(self, guest: GuestFacts) -> CpuVerdict:
        await self._before("compare_cpu")
        with self._changing("compare_cpu") as world:
            return preflight.compare_cpu(world, self._host, guest, self._capabilities)

    async def open_peer(self, hostname: str, *, transport: str, patience: float) -> str:
        await self._before("open_peer")
        with self._changing("open_peer") as world:
            found = preflight.open_peer(world, self._host, hostname, transport=transport)
        if not found:
            await self._fabric.clock.sleep(patience)
            raise hypervisor_error(f"{hostname} did not answer within {patience:g} s")
        return found

    async def measure_dirty_rate(self, instance_id: InstanceId, *, seconds: int) -> int:
        await self._before("measure_dirty_rate")
        with self._fabric.transaction() as world:
            preflight.begin_measuring(world, self._host, instance_id)
        await self._fabric.clock.sleep(seconds)
        with self._changing("measure_dirty_rate") as world:
            return preflight.end_measuring(world, self._host, instance_id)

    @asynccontextmanager
    async def guarded(self, instance_id: InstanceId, *, limit: float) -> AsyncIterator[Guard]:
        await self._before("guarded")
        with self._fabric.transaction() as world:
            world.domain(self._host, instance_id)
        guard = backups.FakeGuard(self._fabric, self._host, instance_id, limit=limit, before=self._before)
        try:
            yield guard
        finally:
            guard.undo()

    async def begin_backup(self, request: BackupRequest) -> None:
        await self._before("begin_backup")
        with self._changing("begin_backup") as world:
            backups.begin(world, self._host, request)

    async def end_backup(self, instance_id: InstanceId) -> None:
        await self._before("end_backup")
        with self._changing("end_backup") as world:
            world.domain(self._host, instance_id).backup = False

    async def checkpoints(self, instance_id: InstanceId) -> list[str]:
        await self._before("checkpoints")
        with self._changing("checkpoints") as world:
            return list(world.domain(self._host, instance_id).checkpoints)

    async def delete_checkpoint(self, instance_id: InstanceId, name: str) -> None:
        await self._before("delete_checkpoint")
        with self._changing("delete_checkpoint") as world:
            backups.delete_checkpoint(world, self._host, instance_id, name)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[HypervisorEvent]]:
        async with self._fabric.awake(), self._fabric.fanout(self._host).subscribe() as events:
            yield events

    async def _before(self, call: str) -> None:
        await self._fabric.faults[self._host].before(call, self._fabric.clock)

    @contextmanager
    def _changing(self, call: str) -> Iterator[World]:
        with self._fabric.transaction() as world:
            yield world
        self._fabric.faults[self._host].finished(call)

    def _running(self, world: World, instance_id: InstanceId) -> FakeDomain:
        domain = world.domain(self._host, instance_id)
        if domain.live is None:
            raise hypervisor_error("Requested operation is not valid: domain is not running")
        return domain

"""The one interface of both drivers, libvirt and fake; tests/contract/hypervisor holds them to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from remuda_core.ids import Epoch, InstanceId, OperationId

from remuda_agent.hypervisor.backups import Backups
from remuda_agent.hypervisor.facts import Probes
from remuda_agent.hypervisor.model import (
    CompletedMigration,
    DomainDescription,
    DomainView,
    HypervisorCapabilities,
    HypervisorEvent,
    MigrationJobStats,
    MigrationRequest,
)


class Hypervisor(Probes, Backups, Protocol):
    """Domains of one host.

    Every call may raise RemudaError with HYPERVISOR_ERROR and the hypervisor's own words. Calls are safe
    to repeat: asking for a state that holds already succeeds. A cancelled await does not undo what the
    hypervisor was told; look again with `view`.
    """

    async def capabilities(self) -> HypervisorCapabilities:
        """What the host offers now."""

    async def define(self, description: DomainDescription) -> DomainView:
        """Define or redefine; a running copy keeps what it runs with. The view has the canonical machine."""

    async def undefine(self, instance_id: InstanceId) -> None:
        """Forget the definition; none there is a success. Refused while the domain is active, because
        libvirt would turn it into one that vanishes at power-off.
        """

    async def start(self, instance_id: InstanceId) -> None:
        """Power on; active already is a success. Raises DomainMissing."""

    async def shutdown(self, instance_id: InstanceId) -> None:
        """Press the power button once and return; off already is a success. Raises DomainMissing.

        A guest that still boots loses the press silently: press again, then destroy.
        """

    async def destroy(self, instance_id: InstanceId) -> None:
        """Power off at once, an incoming migration's domain too; off or absent already is a success."""

    async def pause(self, instance_id: InstanceId) -> None:
        """Stop the CPUs; paused already is a success. Raises DomainMissing; refused when off."""

    async def resume(self, instance_id: InstanceId) -> None:
        """Run the CPUs; running already is a success. Raises DomainMissing; refused when off, and in any
        state of post-copy, where it would corrupt memory.
        """

    async def view(self, instance_id: InstanceId) -> DomainView | None:
        """The domain as it is now; None: there is none of Remuda with this id."""

    async def domains(self) -> list[DomainView]:
        """Every domain of Remuda, by instance id."""

    async def set_epoch(self, instance_id: InstanceId, *, epoch: Epoch, operation_id: OperationId) -> None:
        """Rewrite the metadata, of the running copy and of the definition. Raises DomainMissing."""

    async def migrate(
        self, request: MigrationRequest, *, begun: asyncio.Event | None = None
    ) -> CompletedMigration:
        """Move the running or paused guest and wait; peer to peer, so that the job outlives this process.

        ``begun`` is set just before the hypervisor is told. Until then the call may wait for its turn, and
        cancelling it means that nothing happens; afterwards cancelling only stops the waiting.

        The source keeps its definition, off; files are the caller's job on both sides, before and after.
        Raises DomainMissing; RemudaError with CANCELLED after `abort_job`, GUEST_STOPPED when the guest went
        off by itself, else HYPERVISOR_ERROR. None of these decides the outcome: observe both hosts.
        """

    async def job_stats(self, instance_id: InstanceId) -> MigrationJobStats | None:
        """The migration that leaves this host now; None: no such job. Raises DomainMissing."""

    async def completed_stats(self, instance_id: InstanceId) -> CompletedMigration | None:
        """Measured by the last migration that ended here, on either side; None: unknown. Kept after reading.

        Raises DomainMissing.
        """

    async def abort_job(self, instance_id: InstanceId) -> None:
        """Cancel the running job; none is a success, post-copy goes on. Raises DomainMissing."""

    async def bound_silence(self, instance_id: InstanceId, *, peer: str) -> None:
        """Let the migration's connections to ``peer`` (address or name) break when that has been silent for a
        while; call it again for connections that are opened later. Without a migration there is none.
        """

    async def end_missed_call(self, *, peer: str) -> None:
        """Break the hypervisor's own connection to ``peer``: a call of `migrate` that has missed the end of
        its guest returns then. Any other migration to the same host breaks, too.
        """

    async def set_bandwidth(self, instance_id: InstanceId, *, mib_per_second: int, post_copy: bool) -> None:
        """Cap the running migration, 0: no cap; with ``post_copy`` the one of post-copy too.

        Disks on their way do not heed it, and memory not always: look at the job's statistics. Raises
        DomainMissing.
        """

    async def set_max_downtime(self, instance_id: InstanceId, *, milliseconds: int) -> int:
        """The longest pause that QEMU may choose; returns what it says is in force. Raises DomainMissing."""

    async def start_post_copy(self, instance_id: InstanceId) -> None:
        """Let the guest go on at the target now. Refused before a first pass over memory has begun (ask
        again), and without `allow_post_copy` at the start. Raises DomainMissing.
        """

    async def guest_agent_ping(self, instance_id: InstanceId, *, timeout: float) -> bool:
        """Whether the guest agent answers within ``timeout`` seconds (rounded up). Raises DomainMissing."""

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[HypervisorEvent]]:
        """Subscribe: ``async with hypervisor.events() as events: async for event in events``.

        Begins with one RELIST, and gives another whenever events may have been lost (reconnect, a slow
        reader). Any number of subscribers; the iterator ends when the driver is closed.
        """

"""Freezing, backups and checkpoints of the fake; what is in its disks is nobody's business here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId

from remuda_agent.hypervisor.backups import BackupRequest
from remuda_agent.hypervisor.fake.fabric import FakeFabric
from remuda_agent.hypervisor.fake.world import World
from remuda_agent.hypervisor.model import EventKind, hypervisor_error


def begin(world: World, host: str, request: BackupRequest) -> None:
    domain = world.domain(host, request.instance_id)
    if domain.live is None:
        raise hypervisor_error("Requested operation is not valid: domain is not running")
    if domain.backup or domain.incoming or world.job_of(host, request.instance_id) is not None:
        raise hypervisor_error("Timed out during operation: cannot acquire state change lock")
    if request.since and request.since not in domain.checkpoints:
        raise hypervisor_error(f"Domain checkpoint not found: no domain checkpoint {request.since}")
    domain.backup = True
    if request.checkpoint:
        domain.checkpoints.append(request.checkpoint)


def delete_checkpoint(world: World, host: str, instance_id: InstanceId, name: str) -> None:
    domain = world.domain(host, instance_id)
    domain.checkpoints = [known for known in domain.checkpoints if known != name]


class FakeGuard:
    """Implements `Guard`. `before` and `finished`: the host's ordered failures, by name of the call."""

    def __init__(
        self,
        fabric: FakeFabric,
        host: str,
        instance_id: InstanceId,
        *,
        limit: float,
        before: Callable[[str], Awaitable[None]],
    ) -> None:
        self._fabric = fabric
        self._host = host
        self._instance = instance_id
        self._limit = limit
        self._before = before
        self._froze_at: float | None = None

    async def freeze(self) -> None:
        await self._before("freeze")
        now = self._fabric.clock.now()
        with self._fabric.transaction() as world:
            domain = world.domain(self._host, self._instance)
            booted = domain.started_at + self._fabric.timings.boot <= now
            if domain.live is None or domain.paused or not domain.guest_agent or not booted:
                raise RemudaError(Reason.QUIESCE_FAILED, "the guest is not frozen: its agent does not answer")
            domain.frozen, self._froze_at = True, now

    async def thaw(self) -> bool:
        await self._before("thaw")
        if self._froze_at is None:
            return False
        in_time = self._fabric.clock.now() <= self._froze_at + self._limit
        return self.undo() and in_time

    async def settle(self) -> None:
        await self._before("settle")
        with self._fabric.transaction() as world:
            domain = world.domain(self._host, self._instance)
            if domain.live is None:
                raise hypervisor_error("Requested operation is not valid: domain is not running")
            if not domain.paused:
                world.tell(self._host, EventKind.SUSPENDED, self._instance, "paused")
                world.tell(self._host, EventKind.RESUMED, self._instance, "unpaused")

    def undo(self) -> bool:
        """Whether it was frozen."""
        self._froze_at = None
        with self._fabric.transaction() as world:
            # Without power it is thawed, too.
            domain = world.hosts[self._host].domains.get(self._instance)
            if domain is None or not domain.frozen:
                return False
            domain.frozen = False
            return True

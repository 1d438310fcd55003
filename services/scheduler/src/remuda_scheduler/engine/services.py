"""What all operations of one term share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from remuda.agent.v1.common_pb2 import LeaderRef
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.ids import HostId, InstanceId

from remuda_scheduler.engine.fencing import FencedAgents
from remuda_scheduler.ports import Controls, Grants, Leadership, Metrics, Placement, ProgressHub
from remuda_scheduler.preflight.service import Preflight
from remuda_scheduler.store import StoreView
from remuda_scheduler.turns.turns import Turns

_CACHE_WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All in seconds."""

    patience: float = 60.0
    """How long a host may be silent before a step fails, or its undo becomes a debt."""
    first_pause: float = 0.1
    """Between two tries; doubles up to `longest_pause`."""
    longest_pause: float = 5.0
    preflight_valid: float = 30.0
    """A move whose preflight saw anything longer ago is checked again before it begins."""
    look_again: float = 0.5
    """Between two looks at hosts that are still at work."""
    debts_every: float = 30.0
    debt_order: float = 60.0
    """For one order that pays a debt. The agent's job goes on; the next payment joins it."""


@dataclass(slots=True, kw_only=True)
class Services:
    """Made anew for every term."""

    etcd: Etcd
    keys: Keys
    store: StoreView
    leadership: Leadership
    agents: FencedAgents
    placement: Placement
    preflight: Preflight
    grants: Grants
    turns: Turns
    progress: ProgressHub
    controls: Controls
    metrics: Metrics
    timing: Timing = field(default_factory=Timing)
    newest_journal: int = 0
    """Revision of the last journal written."""
    newest_status: int = 0
    """Revision of the last status written by an operation."""
    allocating: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while addresses are chosen and taken."""
    closing_debts: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a debt is struck off: which one is an instance's last is decided one at a time."""
    _placing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _turns: WeakValueDictionary[tuple[HostId, InstanceId], asyncio.Lock] = field(
        default_factory=WeakValueDictionary
    )

    @property
    def leader(self) -> LeaderRef:
        return self.agents.leader

    def turn(self, host: HostId, instance: InstanceId) -> asyncio.Lock:
        """Held while debts of an instance on a host are paid."""
        return self._turns.setdefault((host, instance), asyncio.Lock())

    @asynccontextmanager
    async def placing(self) -> AsyncIterator[None]:
        """One placement at a time, over caches that show all earlier ones: nothing is given away twice.

        Raises Unavailable when the caches do not catch up.
        """
        async with self._placing:
            await self.store.journals.wait_revision(self.newest_journal, _CACHE_WAIT_SECONDS)
            await self.store.statuses.wait_revision(self.newest_status, _CACHE_WAIT_SECONDS)
            yield

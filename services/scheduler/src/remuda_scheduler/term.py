"""Everything that lives as long as one leadership."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remuda_core.etcd.election import Leadership
from remuda_core.ids import HostId

from remuda_scheduler.hosts.agents import AgentClients
from remuda_scheduler.hosts.judge import Judge
from remuda_scheduler.hosts.keeper import HostKeeper
from remuda_scheduler.hosts.registry import HostRegistry
from remuda_scheduler.janitor.service import Janitor
from remuda_scheduler.live.hub import ProgressHub
from remuda_scheduler.placement.placer import Placer
from remuda_scheduler.preflight.service import Preflight
from remuda_scheduler.reconcile.service import Reconciler
from remuda_scheduler.repairing.service import Repairer
from remuda_scheduler.store import StoreView
from remuda_scheduler.turns.turns import Turns

if TYPE_CHECKING:
    from remuda_scheduler.live.control import ControlHub


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """Made by leader.py when this scheduler is elected, dropped when it is not any more."""

    leadership: Leadership
    store: StoreView
    registry: HostRegistry
    keeper: HostKeeper
    judge: Judge
    agents: AgentClients
    placer: Placer
    preflight: Preflight
    turns: Turns
    janitor: Janitor
    reconciler: Reconciler
    repairer: Repairer
    hub: ProgressHub
    controls: "ControlHub"
    on_attached: Callable[[HostId], None]
    """A host is back: its debts can be paid, operations that waited for it go on."""

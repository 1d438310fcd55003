"""Not the source of the move, and not a target that was tried in vain."""

from remuda_scheduler.placement.model import Demand, HostFacts


def exclusion(host: HostFacts, demand: Demand) -> str | None:
    return demand.excluded.get(host.id)

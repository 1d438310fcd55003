"""Every network of the guest has a bridge there."""

from remuda_scheduler.placement.model import Demand, HostFacts


def networks(host: HostFacts, demand: Demand) -> str | None:
    missing = sorted(demand.physical_networks - host.physical_networks)
    return f"no bridge for physical network {', '.join(missing)}" if missing else None

"""Only the host that was asked for."""

from remuda_scheduler.placement.model import Demand, HostFacts


def requested_host(host: HostFacts, demand: Demand) -> str | None:
    return None if demand.host in (None, host.id) else "another host was asked for"

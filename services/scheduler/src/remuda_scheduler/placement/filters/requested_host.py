"""Only the host that was asked for, or the one that was checked for it."""

from remuda_scheduler.placement.model import Demand, HostFacts


def requested_host(host: HostFacts, demand: Demand) -> str | None:
    if demand.host not in (None, host.id):
        return "another host was asked for"
    if demand.among is not None and host.id not in demand.among:
        return "it was not chosen by preflight"
    return None

"""The host's agent answers and the operator lets the host be used."""

from remuda_scheduler.placement.model import Demand, HostFacts


def availability(host: HostFacts, demand: Demand) -> str | None:
    if not host.up:
        return f"the host is {host.state}"
    # A host that is named is a decision of an operator, who may have cordoned it for just this.
    if host.cordoned and demand.host != host.id:
        return "the host is cordoned"
    return None

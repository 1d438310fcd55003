"""Prefers the host with fewer instances: fewer guests are hit when it fails."""

from remuda_scheduler.placement.model import Demand, HostFacts


def few_instances(host: HostFacts, _demand: Demand) -> float:
    return 1.0 / (1 + host.instances)

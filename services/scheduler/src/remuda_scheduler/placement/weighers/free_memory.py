"""Prefers the host that has the largest share of its memory left afterwards: spreads load."""

from remuda_scheduler.placement.model import Demand, HostFacts


def free_memory(host: HostFacts, demand: Demand) -> float:
    left = host.memory_mib - host.used_memory_mib - demand.memory_mib
    return max(0.0, left / host.memory_mib) if host.memory_mib else 0.0

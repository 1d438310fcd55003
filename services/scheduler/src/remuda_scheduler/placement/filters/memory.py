"""Enough memory is free after what instances and reservations take."""

from remuda_scheduler.placement.model import Demand, HostFacts


def memory(host: HostFacts, demand: Demand) -> str | None:
    free = host.memory_mib - host.used_memory_mib
    if demand.memory_mib <= free:
        return None
    return f"{free} of {host.memory_mib} MiB free, {demand.memory_mib} MiB needed"

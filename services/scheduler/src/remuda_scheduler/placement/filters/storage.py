"""A pool that fits is there, and has room."""

from remuda_scheduler.placement.model import Demand, HostFacts
from remuda_scheduler.placement.pools import candidate_pool, free_bytes

MIB = 1 << 20


def storage(host: HostFacts, demand: Demand) -> str | None:
    pool = candidate_pool(host, demand)
    if pool is None:
        if demand.pool:
            return f"pool {demand.pool!r} is not there" + (" (same storage)" if demand.pool_uid else "")
        return "no local pool"
    free = free_bytes(host, pool)
    if demand.disk_bytes <= free:
        return None
    return f"pool {pool.name!r} has {free // MIB} MiB free, {demand.disk_bytes // MIB} MiB needed"

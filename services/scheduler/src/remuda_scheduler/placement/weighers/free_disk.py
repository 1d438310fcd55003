"""Prefers the pool with the largest share of free space left afterwards."""

from remuda_scheduler.placement.model import Demand, HostFacts
from remuda_scheduler.placement.pools import candidate_pool, free_bytes


def free_disk(host: HostFacts, demand: Demand) -> float:
    pool = candidate_pool(host, demand)
    if pool is None or not pool.capacity_bytes:
        return 0.0
    return max(0.0, (free_bytes(host, pool) - demand.disk_bytes) / pool.capacity_bytes)

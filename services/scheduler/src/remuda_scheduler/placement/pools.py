"""Which pool of a host would hold the disks of a demand."""

from remuda_scheduler.placement.model import Demand, HostFacts, Pool


def free_bytes(host: HostFacts, pool: Pool) -> int:
    """Free space that is not promised to an open operation."""
    return pool.available_bytes - host.reserved_disk_bytes.get(pool.uid, 0)


def candidate_pool(host: HostFacts, demand: Demand) -> Pool | None:
    """The named pool, or the local one with the most free space; None when there is none such.

    Without a name a shared pool is never taken: shared storage is a decision of the owner's, because
    what lies there is lost or slow for everybody at once.
    """
    if demand.pool:
        pool = host.pools.get(demand.pool)
        return pool if pool and demand.pool_uid in ("", pool.uid) else None
    local = [pool for pool in host.pools.values() if not pool.shared]
    return max(local, key=lambda pool: (free_bytes(host, pool), pool.name), default=None)

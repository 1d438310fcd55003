"""vCPUs, memory and disk of the target after the move.

What is promised, that is: whether bytes are really free in the pool is STORAGE's question, so that a pool
that something else has filled is told apart from a host that has given everything away.
"""

from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.placement.filters.memory import memory
from remuda_scheduler.placement.filters.vcpus import vcpus
from remuda_scheduler.placement.pools import candidate_pool
from remuda_scheduler.preflight.facts import Facts
from remuda_scheduler.preflight.rows import FAIL, PASS, row
from remuda_scheduler.preflight.wording import mib

_CONDITION = MigrationCheck.CONDITION_CAPACITY


def capacity(facts: Facts) -> MigrationCheck | None:
    host, demand = facts.target.placement, facts.move.demand
    refusals = [refusal for refusal in (vcpus(host, demand), memory(host, demand), _disk(facts)) if refusal]
    taken = (
        f"{host.used_vcpus + demand.vcpus} of {host.vcpus} vCPUs and "
        f"{host.used_memory_mib + demand.memory_mib} of {host.memory_mib} MiB taken after the move"
    )
    fix = f"Move or stop other instances on {facts.target.name}, or take a host with more room."
    return row(
        facts,
        _CONDITION,
        FAIL if refusals else PASS,
        target="; ".join(refusals) if refusals else taken,
        required=f"{demand.vcpus} vCPUs, {demand.memory_mib} MiB of memory, {mib(demand.disk_bytes)} of disk",
        fix=fix if refusals else "",
    )


def _disk(facts: Facts) -> str | None:
    host, demand = facts.target.placement, facts.move.demand
    pool = candidate_pool(host, demand)
    if pool is None or not demand.disk_bytes or not pool.capacity_bytes:
        return None
    promised = host.reserved_disk_bytes.get(pool.uid, 0)
    if promised + demand.disk_bytes <= pool.capacity_bytes:
        return None
    return (
        f"pool {pool.name!r} has {mib(pool.capacity_bytes)}, {mib(promised)} of them promised, "
        f"{mib(demand.disk_bytes)} needed"
    )

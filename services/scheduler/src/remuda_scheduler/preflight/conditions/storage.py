"""Shared: the same file was seen by both. Block: room for every disk, base image obtainable.

A pool that only claims to be the same storage is refused, never copied into: were it the same after all (a
network file system that lags), the copy would be written over the very disks that it is read from.
"""

from remuda.agent.v1.probe_pb2 import AssessGuestResponse, GuestFacts
from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.placement.filters.storage import storage as refuse_pool
from remuda_scheduler.preflight.facts import Facts, NoAnswer, SharedFile
from remuda_scheduler.preflight.rows import FAIL, PASS, row, unknown
from remuda_scheduler.preflight.wording import mib

_CONDITION = MigrationCheck.CONDITION_STORAGE


def storage(facts: Facts) -> MigrationCheck | None:
    if facts.probes is None:
        return _known_without_asking(facts)
    guest, target, tried = facts.probes.guest, facts.probes.target, facts.probes.shared_file
    for probe in (target, tried):
        if probe is not None and isinstance(probe.found, NoAnswer):
            return unknown(facts, _CONDITION, of=(probe,), target=probe, required=_required(facts))
    if isinstance(guest.found, NoAnswer):
        return unknown(facts, _CONDITION, of=(guest,), source=guest, required=_required(facts))
    assert not isinstance(target.found, NoAnswer)
    seen, fix = _trouble(facts, guest.found, target.found)
    verdict = FAIL if fix else PASS
    of = (guest, target) if tried is None else (guest, target, tried)
    return row(
        facts,
        _CONDITION,
        verdict,
        of=of,
        source=_source_words(facts),
        target=seen,
        required=_required(facts),
        fix=fix,
    )


def _trouble(facts: Facts, guest: GuestFacts, target: AssessGuestResponse) -> tuple[str, str]:
    """What the target shows, and how to repair it; no repair: nothing is wrong."""
    name, uid = facts.move.demand.pool, facts.move.demand.pool_uid
    here = facts.target.name
    if not target.pool_uid:
        return f"there is no pool {name!r}", f"Give {here} a pool {name!r}: [[pools]] of its agent."
    if full := _full(facts):
        return full, f"Free space in pool {name!r}: not even a small file can be written there."
    outside = sorted(disk.source for disk in guest.disks if disk.source.startswith("/"))
    if outside:
        return (
            f"disks outside of the instance's directory: {', '.join(outside)}",
            "Detach them from the guest: what lies elsewhere is not moved.",
        )
    if not facts.same_storage and (uid or _lied(facts)):
        return _not_the_same(facts, target.pool_uid)
    if not target.base_image_cached and target.base_image_problem:
        return (
            f"base image not obtainable: {target.base_image_problem}",
            f"Let {here} reach an image store that holds the image of the instance.",
        )
    if facts.same_storage:
        return f"pool {name!r}, the same storage: a file written there was read at the source", ""
    return _room(facts, guest, target)


def _room(facts: Facts, guest: GuestFacts, target: AssessGuestResponse) -> tuple[str, str]:
    name = facts.move.demand.pool
    promised = facts.target.placement.reserved_disk_bytes.get(target.pool_uid, 0)
    free = max(0, target.pool_available_bytes - promised)
    seen = f"pool {name!r} has {mib(free)} free"
    if _needed(guest) <= free:
        return seen, ""
    return (
        f"{seen}, {mib(_needed(guest))} are needed",
        f"Free space in pool {name!r} on {facts.target.name}, or take a host with more room.",
    )


def _not_the_same(facts: Facts, uid: str) -> tuple[str, str]:
    name = facts.move.demand.pool
    if _lied(facts):
        return (
            f"pool {name!r} has the same uid, but a file written there was not seen at the source",
            f"See that {facts.target.name} has mounted what pool {name!r} is on, and not a copy of it.",
        )
    return (
        f"pool {name!r} is another storage (uid {uid})",
        f"Mount the storage of pool {name!r} on {facts.target.name}, or take a host that has it.",
    )


def _lied(facts: Facts) -> bool:
    """It was tried, and the file was not seen: by its uid, as one whom both call shared."""
    tried = facts.probes.shared_file if facts.probes is not None else None
    if tried is None or not isinstance(tried.found, SharedFile) or tried.found.read:
        return False
    pools = [side.placement.pools.get(facts.move.demand.pool) for side in (facts.source, facts.target)]
    return any(pool is not None and pool.shared for pool in pools)


def _full(facts: Facts) -> str:
    tried = facts.probes.shared_file if facts.probes is not None else None
    return tried.found.full if tried is not None and isinstance(tried.found, SharedFile) else ""


def _known_without_asking(facts: Facts) -> MigrationCheck | None:
    refusal = refuse_pool(facts.target.placement, facts.move.demand)
    if refusal is None:
        return None
    return row(
        facts,
        _CONDITION,
        FAIL,
        source=_source_words(facts),
        target=refusal,
        required=_required(facts),
        fix="Give the host such a pool with enough room, or take another host.",
    )


def _needed(guest: GuestFacts) -> int:
    """As placement counts: an overlay may grow to its full size."""
    return sum(disk.capacity_bytes for disk in guest.disks if disk.device == "disk")


def _source_words(facts: Facts) -> str:
    pool = facts.source.placement.pools.get(facts.move.demand.pool)
    kind = "unknown" if pool is None else "shared" if pool.shared else "local"
    size = ""
    if facts.probes is not None and not isinstance(facts.probes.guest.found, NoAnswer):
        size = f", disks of {mib(_needed(facts.probes.guest.found))}"
    return f"pool {facts.move.demand.pool!r}, {kind}{size}"


def _required(facts: Facts) -> str:
    name = facts.move.demand.pool
    if facts.move.demand.pool_uid:
        return f"pool {name!r} on the same storage: a file written by one host is read by the other"
    return f"pool {name!r} with room for every disk, and the base image obtainable"

"""The guest's memory can be sent faster than it is rewritten.

An estimate, and so never a reason to refuse: the move itself has a ladder (a longer pause, auto-converge,
post-copy) for what does not converge. Each pass sends what was dirtied during the one before, a geometric
series: memory / (bandwidth - dirty rate), after the disks at bandwidth.
"""

from dataclasses import dataclass
from math import ceil

from remuda.agent.v1.probe_pb2 import GuestFacts
from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.facts import Facts, NoAnswer
from remuda_scheduler.preflight.rows import PASS, WARN, row, unknown
from remuda_scheduler.preflight.wording import mib

_CONDITION = MigrationCheck.CONDITION_CONVERGENCE
_MIB = 1 << 20
ASSUMED_MIB_S = 110
"""What one gigabit per second carries, when no cap was asked for: nobody has measured the link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    bandwidth: int
    """Bytes per second."""
    seconds: float | None
    """None: it does not converge."""


def estimate(facts: Facts) -> Estimate | None:
    """None when the guest or its dirty rate is not known."""
    probes = facts.probes
    if probes is None or probes.dirty_rate is None or isinstance(probes.guest.found, NoAnswer):
        return None
    rate = probes.dirty_rate.found
    if isinstance(rate, NoAnswer):
        return None
    bandwidth = (facts.move.bandwidth_mib_s or ASSUMED_MIB_S) * _MIB
    guest = probes.guest.found
    left = bandwidth - rate
    if left <= 0:
        # All that is dirtied in a pass has to fit into the pause.
        return Estimate(bandwidth=bandwidth, seconds=None)
    seconds = _disk_bytes(facts, guest) / bandwidth + guest.memory_bytes / left
    return Estimate(bandwidth=bandwidth, seconds=seconds)


def convergence(facts: Facts) -> MigrationCheck | None:
    if facts.probes is None:
        return None
    guest, rate = facts.probes.guest, facts.probes.dirty_rate
    link = f"{facts.move.bandwidth_mib_s} MiB/s as asked" if facts.move.bandwidth_mib_s else _assumed()
    required = f"less than the link carries: {link}"
    if isinstance(guest.found, NoAnswer):
        return unknown(facts, _CONDITION, of=(guest,), source=guest, required=required)
    of = (guest,) if rate is None else (guest, rate)
    if rate is None or isinstance(rate.found, NoAnswer):
        why = "never measured"
        if rate is not None and isinstance(rate.found, NoAnswer):
            why = f"not measured: {rate.found.words}"
        fix = "CheckMigration measures it; the move itself says how it gets on."
        return row(facts, _CONDITION, WARN, of=of, source=f"dirty rate {why}", required=required, fix=fix)
    seen = f"dirties {rate.found / _MIB:.1f} MiB/s of {mib(guest.found.memory_bytes)}"
    found = estimate(facts)
    if found is not None and found.seconds is not None:
        seen = f"{seen}; converges in about {ceil(found.seconds)} s"
        return row(facts, _CONDITION, PASS, of=of, source=seen, required=required)
    needed = ceil(rate.found / _MIB) + 1
    fix = (
        f"It would take more than {needed} MiB/s of bandwidth, or a move with auto_converge, allow_post_copy "
        "or ON_TIMEOUT_PAUSE."
    )
    return row(
        facts, _CONDITION, WARN, of=of, source=f"{seen}; does not converge", required=required, fix=fix
    )


def _disk_bytes(facts: Facts, guest: GuestFacts) -> int:
    return 0 if facts.same_storage else sum(disk.allocation_bytes for disk in guest.disks)


def _assumed() -> str:
    return f"{ASSUMED_MIB_S} MiB/s, one gigabit per second being assumed"

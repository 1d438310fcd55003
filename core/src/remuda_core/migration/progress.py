"""How far a live migration is, and when it will be there. Pure; bytes and seconds."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Job statistics at one moment."""

    memory_total: int
    memory_remaining: int
    disk_total: int = 0
    disk_remaining: int = 0
    rate: int = 0
    """Bytes per second on the wire."""
    dirty_rate: int = 0
    """Bytes of memory that the guest rewrites per second."""
    max_downtime_seconds: float = 0.3
    """What may be left over for the switch-over."""


def percent(sample: Sample, previous: int = 0) -> int:
    """0 to 99, never below `previous`: work that is done, not bytes sent over total.

    Bytes sent would pass 100 as soon as a page is sent twice. A new pass over memory makes the remainder grow
    again: the percentage then stands still instead of falling. 100 is for the end, which only an outcome can
    say.
    """
    total = sample.memory_total + sample.disk_total
    if total <= 0:
        return min(99, max(0, previous))
    remaining = min(total, max(0, sample.memory_remaining) + max(0, sample.disk_remaining))
    return max(previous, min(99, (total - remaining) * 100 // total))


def does_not_converge(sample: Sample) -> bool:
    """The guest dirties memory at least as fast as it is sent, and what is left does not fit in the pause.

    False while disks are copied: memory has not begun, and the rate is that of the disks.
    """
    if sample.rate <= 0 or sample.disk_remaining > 0:
        return False
    fits = sample.memory_remaining <= sample.rate * sample.max_downtime_seconds
    return sample.dirty_rate >= sample.rate and not fits


def eta_ms(sample: Sample) -> int | None:
    """Milliseconds until the switch-over; None: unknown, or it does not converge.

    Disks first at the full rate, then memory at what the rate leaves over the dirty rate:
    disk / rate + memory / (rate - dirty). What fits in the allowed pause needs no gain.
    """
    if sample.rate <= 0:
        return None
    disks = max(0, sample.disk_remaining) / sample.rate
    gain = sample.rate - sample.dirty_rate
    if gain > 0:
        memory = max(0, sample.memory_remaining) / gain
    elif sample.memory_remaining <= sample.rate * sample.max_downtime_seconds:
        memory = 0.0
    else:
        return None
    return math.ceil((disks + memory) * 1000)

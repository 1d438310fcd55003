"""Weighers, one per file. A weigher is a function `(host, demand) -> float` from 0 (worst) to 1 (best)."""

from collections.abc import Callable, Mapping

from remuda_scheduler.placement.model import Demand, HostFacts
from remuda_scheduler.placement.weighers.few_instances import few_instances
from remuda_scheduler.placement.weighers.free_disk import free_disk
from remuda_scheduler.placement.weighers.free_memory import free_memory

Weigher = Callable[[HostFacts, Demand], float]

WEIGHERS: Mapping[str, tuple[float, Weigher]] = {
    "free_memory": (1.0, free_memory),
    "few_instances": (0.5, few_instances),
    "free_disk": (0.25, free_disk),
}
"""Name to (factor, weigher); a host's score is the sum of factor times weight."""

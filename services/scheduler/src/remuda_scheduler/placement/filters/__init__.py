"""Filters, one per file, in the order they are asked: the cheap and telling ones first.

A filter is a function `(host, demand) -> str | None`: why the host is refused, with what was seen and what
is needed, or None. Its name in explanations and metrics is the key below.
"""

from collections.abc import Callable, Mapping

from remuda_scheduler.placement.filters.availability import availability
from remuda_scheduler.placement.filters.compatibility import compatibility
from remuda_scheduler.placement.filters.exclusion import exclusion
from remuda_scheduler.placement.filters.memory import memory
from remuda_scheduler.placement.filters.networks import networks
from remuda_scheduler.placement.filters.requested_host import requested_host
from remuda_scheduler.placement.filters.storage import storage
from remuda_scheduler.placement.filters.vcpus import vcpus
from remuda_scheduler.placement.model import Demand, HostFacts

Filter = Callable[[HostFacts, Demand], str | None]

FILTERS: Mapping[str, Filter] = {
    "requested_host": requested_host,
    "exclusion": exclusion,
    "availability": availability,
    "compatibility": compatibility,
    "networks": networks,
    "vcpus": vcpus,
    "memory": memory,
    "storage": storage,
}

"""Gauges over what the caches hold, computed on a clock and not per change: a scrape comes now and then."""

import asyncio
import time
from collections import Counter

from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_core.etcd.cache import PrefixCache
from remuda_core.ids import HostId
from remuda_core.telemetry.metrics import Metrics

from remuda_api.store.caches import Caches

_EVERY_SECONDS = 5.0


async def keep_gauges(caches: Caches, metrics: Metrics) -> None:
    """Runs until it is cancelled."""
    while True:
        set_gauges(caches, metrics, now=time.time())
        await asyncio.sleep(_EVERY_SECONDS)


def set_gauges(caches: Caches, metrics: Metrics, *, now: float) -> None:
    """`now`: seconds since the epoch. Labels that nothing has any more disappear."""
    operations: Counter[tuple[str, str]] = Counter()
    oldest = now
    for entry in caches.operations.items():
        metadata = entry.value.metadata
        if not entry.value.done:
            state = OperationMetadata.State.Name(metadata.state).removeprefix("STATE_")
            operations[entry.value.action, state] += 1
            oldest = min(oldest, metadata.create_time.ToNanoseconds() / 1e9)
    metrics.operations.clear()
    for (action, state), count in operations.items():
        metrics.operations.labels(action, state).set(count)
    metrics.operation_oldest_seconds.set(max(0.0, now - oldest))
    metrics.instances.clear()
    for (host, state), count in _instances(caches).items():
        metrics.instances.labels(host, state).set(count)
    for cache in all_caches(caches):
        metrics.etcd_synced.labels(cache.prefix).set(1 if cache.connected else 0)


def all_caches(caches: Caches) -> list[PrefixCache[object]]:
    fields = (getattr(caches, name) for name in caches.__slots__)
    return [field for field in fields if isinstance(field, PrefixCache)]


def _instances(caches: Caches) -> Counter[tuple[str, str]]:
    """By display name of the host, empty where there is none, and state."""
    found: Counter[tuple[str, str]] = Counter()
    for entry in caches.statuses.items():
        host = caches.hosts.get(caches.keys.host(HostId(entry.value.host_id)))
        name = host.value.display_name if host is not None else entry.value.host_id
        found[name, Instance.State.Name(entry.value.state).removeprefix("STATE_")] += 1
    return found

"""Gauges that show the leader's book, refreshed when they are scraped; a standby shows none."""

from collections import Counter

from remuda.compute.v1.host_pb2 import Host
from remuda.compute.v1.instance_pb2 import Instance
from remuda_core.telemetry.metrics import Metrics

from remuda_scheduler.term import Term

MIB = 1 << 20


def show(metrics: Metrics, term: Term | None) -> None:
    """Sets leader, hosts and instances; clears them when `term` is None."""
    for family in (metrics.host_state, metrics.host_memory_bytes, metrics.instances):
        family.clear()
    metrics.leader.set(0 if term is None else 1)
    if term is None:
        return
    metrics.leader_epoch.set(term.leadership.epoch)
    names: dict[str, str] = {}
    for host in term.placer.hosts():
        names[host.id] = host.name
        for state in Host.State.keys()[1:]:
            word = state.removeprefix("STATE_").lower()
            metrics.host_state.labels(host=host.name, state=word).set(word == host.state)
        metrics.host_memory_bytes.labels(host=host.name, kind="total").set(host.memory_mib * MIB)
        metrics.host_memory_bytes.labels(host=host.name, kind="allocated").set(host.used_memory_mib * MIB)
    counts = Counter(
        (names.get(entry.value.host_id, ""), Instance.State.Name(entry.value.state))
        for entry in term.store.statuses.items()
    )
    for (name, state), count in counts.items():
        metrics.instances.labels(host=name, state=state.removeprefix("STATE_").lower()).set(count)

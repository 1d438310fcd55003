"""Gauges that show the leader's book, counted anew for every scrape; a standby shows none."""

import time
from collections import Counter

from prometheus_client import Gauge
from remuda.compute.v1.host_pb2 import Host
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.migration_pb2 import MigrationProgress
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_core.telemetry.metrics import Metrics

from remuda_scheduler.term import Term

MIB = 1 << 20


def show(metrics: Metrics, term: Term | None) -> None:
    """Sets everything that is counted from the term's caches; clears it when `term` is None.

    In one go, so that no scrape sees a half of it.
    """
    for family in _families(metrics):
        family.clear()
    metrics.leader.set(0 if term is None else 1)
    metrics.operation_oldest_seconds.set(0)
    metrics.image_damaged_chunks.set(0 if term is None else term.repairer.damaged)
    if term is None:
        return
    metrics.leader_epoch.set(term.leadership.epoch)
    names = _show_hosts(metrics, term)
    _show_instances(metrics, term, names)
    _show_operations(metrics, term)
    _show_migrations(metrics, term)


def _families(metrics: Metrics) -> tuple[Gauge, ...]:
    return (
        metrics.host_state,
        metrics.host_memory_bytes,
        metrics.instances,
        metrics.operations,
        metrics.migration_total_bytes,
        metrics.migration_processed_bytes,
        metrics.migration_remaining_bytes,
        metrics.migration_dirty,
        metrics.migration_iteration,
        metrics.migrations_waiting,
    )


def _show_hosts(metrics: Metrics, term: Term) -> dict[str, str]:
    """Returns the hosts' names by UUID."""
    names: dict[str, str] = {}
    for host in term.placer.hosts():
        names[host.id] = host.name
        for state in Host.State.keys()[1:]:
            word = _word(state)
            metrics.host_state.labels(host=host.name, state=word).set(word == host.state)
        metrics.host_memory_bytes.labels(host=host.name, kind="total").set(host.memory_mib * MIB)
        metrics.host_memory_bytes.labels(host=host.name, kind="allocated").set(host.used_memory_mib * MIB)
    return names


def _show_instances(metrics: Metrics, term: Term, names: dict[str, str]) -> None:
    counts = Counter(
        (names.get(entry.value.host_id, ""), _word(Instance.State.Name(entry.value.state)))
        for entry in term.store.statuses.items()
    )
    for (name, state), count in counts.items():
        metrics.instances.labels(host=name, state=state).set(count)


def _show_operations(metrics: Metrics, term: Term) -> None:
    now = oldest = time.time()
    counts: Counter[tuple[str, str]] = Counter()
    for entry in term.store.operations.items():
        record = entry.value
        if not record.done:
            counts[record.action, _word(OperationMetadata.State.Name(record.metadata.state))] += 1
            oldest = min(oldest, record.metadata.create_time.ToNanoseconds() / 1e9)
    metrics.operation_oldest_seconds.set(now - oldest)
    for (action, state), count in counts.items():
        metrics.operations.labels(action=action, state=state).set(count)


def _show_migrations(metrics: Metrics, term: Term) -> None:
    for limit, count in term.turns.waiting().items():
        metrics.migrations_waiting.labels(limit).set(count)
    for operation, progress in term.hub.running():
        entry = term.store.operations.get(term.store.keys.operation(operation))
        if entry is not None and progress.HasField("migration"):
            _show_migration(metrics, entry.value.instance_id, progress.migration)


def _show_migration(metrics: Metrics, instance: str, seen: MigrationProgress) -> None:
    for kind, total, processed, remaining in (
        ("memory", seen.memory_total_bytes, seen.memory_processed_bytes, seen.memory_remaining_bytes),
        ("disk", seen.disk_total_bytes, seen.disk_processed_bytes, seen.disk_remaining_bytes),
    ):
        metrics.migration_total_bytes.labels(instance, kind).set(total)
        metrics.migration_processed_bytes.labels(instance, kind).set(processed)
        metrics.migration_remaining_bytes.labels(instance, kind).set(remaining)
    metrics.migration_dirty.labels(instance).set(seen.dirty_bytes_per_second)
    metrics.migration_iteration.labels(instance).set(seen.iteration)


def _word(name: str) -> str:
    return name.removeprefix("STATE_").lower()

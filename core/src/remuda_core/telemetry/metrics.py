"""Every metric that Remuda exports: the one registry of names.

gRPC metrics have the names of go-grpc-middleware, so that existing dashboards work. No instance name or UUID
is a label of a histogram. Each process has one Metrics, made in its main.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_RPC_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WORK_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_DOWNTIME_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Metrics of one process. A service exports those that it touches."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        rpc = ("grpc_type", "grpc_service", "grpc_method")
        self._started = Counter("grpc_server_started", "Calls begun.", rpc, registry=r)
        self._handled = Counter(
            "grpc_server_handled", "Calls ended, by status code.", (*rpc, "grpc_code"), registry=r
        )
        self._handling = Histogram(
            "grpc_server_handling_seconds", "Duration of calls.", rpc, buckets=_RPC_SECONDS, registry=r
        )
        self.leader = Gauge("remuda_leader", "1 when this scheduler leads.", registry=r)
        self.leader_epoch = Gauge("remuda_leader_epoch", "Epoch of the leader last seen.", registry=r)
        self.host_state = Gauge(
            "remuda_host_state", "1 for the state that the host is in.", ("host", "state"), registry=r
        )
        self.host_memory_bytes = Gauge(
            "remuda_host_memory_bytes", "Memory of a host: total, allocated.", ("host", "kind"), registry=r
        )
        self.instances = Gauge(
            "remuda_instances", "Instances by host and state.", ("host", "state"), registry=r
        )
        self.operations = Gauge(
            "remuda_operations",
            "Operations that are open, by action and state.",
            ("action", "state"),
            registry=r,
        )
        self.operations_ended = Counter(
            "remuda_operations_ended", "Operations that ended.", ("action", "result", "reason"), registry=r
        )
        self.operation_seconds = Histogram(
            "remuda_operation_duration_seconds",
            "Admission to end of an operation.",
            ("action", "result"),
            buckets=_WORK_SECONDS,
            registry=r,
        )
        self.operation_oldest_seconds = Gauge(
            "remuda_operation_oldest_seconds", "Age of the oldest open operation.", registry=r
        )
        self.schedule_seconds = Histogram(
            "remuda_schedule_seconds", "Time of one placement.", buckets=_RPC_SECONDS, registry=r
        )
        self.schedule_rejections = Counter(
            "remuda_schedule_rejections", "Hosts rejected by a placement filter.", ("filter",), registry=r
        )
        self._add_migrations(r)
        self._add_images(r)
        self._add_base_cache(r)
        self._add_repairs(r)
        self.agent_attached = Gauge(
            "remuda_agent_attached", "1 when this agent is attached to a leader.", registry=r
        )
        self.agent_jobs = Gauge("remuda_agent_jobs", "Jobs that run on this agent.", ("step",), registry=r)
        self.agent_quarantined = Gauge(
            "remuda_agent_quarantined_copies",
            "Copies on this host that may not be started: no answer yet (NONE), HOLD, or RELEASE (stale).",
            ("decision",),
            registry=r,
        )
        self.etcd_synced = Gauge(
            "remuda_cache_synced", "1 when the cache of a prefix follows etcd.", ("prefix",), registry=r
        )

    def _add_migrations(self, r: CollectorRegistry) -> None:
        # Gauges of what runs now are labelled by instance: few at a time, removed at the end.
        running = ("instance", "kind")
        self.migration_total_bytes = Gauge(
            "remuda_migration_total_bytes", "Bytes of a running migration: memory, disk.", running, registry=r
        )
        self.migration_processed_bytes = Gauge(
            "remuda_migration_processed_bytes", "Bytes sent, repeated pages included.", running, registry=r
        )
        self.migration_remaining_bytes = Gauge(
            "remuda_migration_remaining_bytes", "Bytes still to send.", running, registry=r
        )
        self.migration_dirty = Gauge(
            "remuda_migration_dirty_bytes_per_second",
            "Memory dirtied by the guest.",
            ("instance",),
            registry=r,
        )
        self.migration_iteration = Gauge(
            "remuda_migration_iteration", "Passes over memory so far.", ("instance",), registry=r
        )
        self.migrations_waiting = Gauge(
            "remuda_migrations_waiting",
            "Moves that wait for their turn, by the limit as Progress.queue names it.",
            ("limit",),
            registry=r,
        )
        self.migrations = Counter(
            "remuda_migrations", "Migrations that ended.", ("kind", "result", "reason"), registry=r
        )
        self.migration_duration = Histogram(
            "remuda_migration_duration_seconds", "Duration.", ("kind",), buckets=_WORK_SECONDS, registry=r
        )
        self.migration_downtime = Histogram(
            "remuda_migration_downtime_seconds",
            "Measured pause of the guest at the switch-over.",
            ("kind",),
            buckets=_DOWNTIME_SECONDS,
            registry=r,
        )

    def _add_images(self, r: CollectorRegistry) -> None:
        self.image_store_bytes = Gauge(
            "remuda_image_store_bytes", "Bytes in the store: virtual, stored.", ("kind",), registry=r
        )
        self.image_bytes = Counter(
            "remuda_image_transfer_bytes",
            "Image bytes moved: uploaded, fetched...",
            ("kind",),
            registry=r,
        )

        self.gc_passes = Counter(
            "remuda_image_gc_passes", "Passes of garbage collection: done, failed.", ("result",), registry=r
        )
        self.gc_last_pass = Gauge(
            "remuda_image_gc_last_pass_timestamp_seconds", "When this replica's last pass ended.", registry=r
        )
        self.gc_marked = Gauge(
            "remuda_image_gc_marked_blobs", "Blobs that its last pass left marked for removal.", registry=r
        )
        self.gc_removed_blobs = Counter(
            "remuda_image_gc_removed_blobs", "Blobs that nothing referred to, removed.", registry=r
        )
        self.scrubbed_bytes = Counter("remuda_image_scrubbed_bytes", "Stored bytes read again.", registry=r)
        self.damaged_chunks = Counter(
            "remuda_image_damage_found", "Chunks of ACTIVE images found damaged or lost.", registry=r
        )
        self.repaired_chunks = Counter(
            "remuda_image_damage_repaired", "Of these: sound again, out of a host's cache.", registry=r
        )
        self.gc_removed_bytes = Counter("remuda_image_gc_removed_bytes", "Their bytes.", registry=r)

    def _add_repairs(self, r: CollectorRegistry) -> None:
        self.image_damaged_chunks = Gauge(
            "remuda_image_damaged_chunks", "Chunks in the image store that are damaged or lost.", registry=r
        )
        self.image_chunks_repaired = Counter(
            "remuda_image_chunks_repaired", "Damaged chunks that hosts have made good.", registry=r
        )

    def _add_base_cache(self, r: CollectorRegistry) -> None:
        pool = ("pool",)
        self.base_cache_bytes = Gauge(
            "remuda_base_cache_bytes",
            "Bytes of base images on a pool, parts of them included.",
            pool,
            registry=r,
        )
        self.base_cache_bound_bytes = Gauge(
            "remuda_base_cache_bound_bytes",
            "What the base images of a pool are kept below.",
            pool,
            registry=r,
        )
        self.base_cache_hits = Counter(
            "remuda_base_cache_hits",
            "Base images that were there, or on their way, when asked for.",
            pool,
            registry=r,
        )
        self.base_cache_misses = Counter(
            "remuda_base_cache_misses", "Base images that had to be fetched.", pool, registry=r
        )
        self.base_cache_evictions = Counter(
            "remuda_base_cache_evictions", "Base images removed to make room.", pool, registry=r
        )
        self.base_cache_overruns = Counter(
            "remuda_base_cache_overruns",
            "Fetches that went over the bound, because everything else was in use.",
            pool,
            registry=r,
        )
        self.base_cache_fetched_bytes = Counter(
            "remuda_base_cache_fetched_bytes",
            "Bytes received for base images, as they travelled.",
            pool,
            registry=r,
        )

    def rpc_started(self, *, method: str, kind: str) -> None:
        """`method` as gRPC names it, /package.Service/Method. Started less handled is in flight."""
        service, _, name = method.strip("/").partition("/")
        self._started.labels(kind, service, name).inc()

    def rpc_handled(self, *, method: str, kind: str, code: str, seconds: float) -> None:
        """`code`: NOT_FOUND; the label is NotFound, as existing dashboards and alerts have it."""
        service, _, name = method.strip("/").partition("/")
        self._handled.labels(kind, service, name, code_label(code)).inc()
        self._handling.labels(kind, service, name).observe(seconds)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float | None:
        """One sample, None when it does not exist: for tests."""
        found: float | None = self.registry.get_sample_value(name, dict(labels or {}))
        return found


def code_label(code: str) -> str:
    """A status code as grpc-go spells it, which is what go-grpc-middleware exports."""
    spelled = {"OK": "OK", "CANCELLED": "Canceled"}.get(code)
    return spelled or "".join(word.capitalize() for word in code.split("_"))

"""What the leader measures, in the words of the project's registry of metric names."""

from prometheus_client import Gauge, Histogram
from remuda_core.telemetry.metrics import Metrics

_STEP_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class LeaderMetrics:
    """Implements ports.Metrics. Two more that only the scheduler has are registered here."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        registry = metrics.registry
        self._steps = Histogram(
            "remuda_step_duration_seconds",
            "One step of an operation.",
            ("action", "step", "outcome"),
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self._debts = Gauge("remuda_debts", "Clean-up owed by unreachable hosts.", registry=registry)
        self._running = Gauge("remuda_operations_running", "Operations at work.", registry=registry)

    def operation_ended(self, action: str, outcome: str, seconds: float, *, reason: str = "") -> None:
        self._metrics.operations_ended.labels(action=action, result=outcome, reason=reason).inc()
        self._metrics.operation_seconds.labels(action=action, result=outcome).observe(seconds)

    def step_ended(self, action: str, step: str, outcome: str, seconds: float) -> None:
        self._steps.labels(action=action, step=step, outcome=outcome).observe(seconds)

    def migration_ended(
        self,
        kind: str,
        outcome: str,
        downtime_seconds: float | None,
        *,
        duration_seconds: float | None = None,
        reason: str = "",
    ) -> None:
        self._metrics.migrations.labels(kind=kind, result=outcome, reason=reason).inc()
        if duration_seconds is not None:
            self._metrics.migration_duration.labels(kind=kind).observe(duration_seconds)
        if downtime_seconds is not None:
            self._metrics.migration_downtime.labels(kind=kind).observe(downtime_seconds)

    def operations_running(self, count: int) -> None:
        self._running.set(count)

    def debts(self, count: int) -> None:
        self._debts.set(count)

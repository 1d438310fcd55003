"""What the leader thinks of a request that only validates: placement, preflight, reconciling."""

from typing import Protocol

from google.protobuf.message import Message
from remuda.compute.v1 import moving_pb2, reconcile_pb2
from remuda.compute.v1 import operation_pb2 as public
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId
from remuda_core.migration.preflight import passed, preflight_failed


class Explainer(Protocol):
    async def explain(self, request: Message) -> public.PlacementExplanation:
        """Raises RemudaError NO_LEADER."""
        ...

    async def check_migration(
        self, instance: InstanceId, request: moving_pb2.CheckMigrationRequest
    ) -> moving_pb2.CheckMigrationResponse:
        """Raises RemudaError NO_LEADER, and what the leader's preflight raises."""
        ...

    async def plan_reconcile(self, instance: InstanceId) -> reconcile_pb2.ReconcileReport:
        """Raises RemudaError NO_LEADER."""
        ...


async def require_a_host(explainer: Explainer, request: Message) -> public.PlacementExplanation:
    """Raises RemudaError NO_HOST_FITS with the number of hosts that each filter refused."""
    explanation = await explainer.explain(request)
    if not explanation.chosen_host:
        rejections = {name: str(count) for name, count in sorted(explanation.rejections.items())}
        counted = ", ".join(f"{name} refuses {count}" for name, count in rejections.items())
        raise RemudaError(
            Reason.NO_HOST_FITS,
            f"none of {explanation.considered} hosts fits" + (f": {counted}" if counted else ""),
            metadata={"considered": str(explanation.considered), **rejections},
        )
    return explanation


async def require_a_target(
    explainer: Explainer, instance: InstanceId, request: moving_pb2.LiveMigrateInstanceRequest
) -> moving_pb2.MigrationCandidate:
    """The host that the guest would go to. Raises PREFLIGHT_FAILED with every row that refuses."""
    asked = moving_pb2.CheckMigrationRequest(
        name=request.name,
        target_host=request.target_host,
        allow_version_skew=request.allow_version_skew,
        max_downtime_ms=request.max_downtime_ms,
        bandwidth_mib_s=request.bandwidth_mib_s,
    )
    candidates = (await explainer.check_migration(instance, asked)).candidates
    chosen = next((one for one in candidates if passed(one)), None)
    if chosen is None:
        raise preflight_failed([one for one in candidates if one.probed] or candidates)
    return chosen

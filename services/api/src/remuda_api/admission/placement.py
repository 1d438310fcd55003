"""What placement thinks of a request that only validates."""

from typing import Protocol

from google.protobuf.message import Message
from remuda.compute.v1 import operation_pb2 as public
from remuda_core.errors import Reason, RemudaError


class Explainer(Protocol):
    async def explain(self, request: Message) -> public.PlacementExplanation:
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

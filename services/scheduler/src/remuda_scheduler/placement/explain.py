"""A plan as the API shows it, bounded so that it can be kept with the operation."""

from remuda.compute.v1 import operation_pb2

from remuda_scheduler.placement.model import Plan, Verdict

MAX_HOSTS = 20
"""Hosts kept in an explanation: the operation's record must stay small with 10,000 hosts."""


def explain(plan: Plan) -> operation_pb2.PlacementExplanation:
    """Eligible hosts first (best first), then refused ones; at most MAX_HOSTS."""
    return operation_pb2.PlacementExplanation(
        chosen_host=f"hosts/{plan.chosen.host.id}" if plan.chosen else "",
        hosts=[_verdict(verdict) for verdict in plan.verdicts[:MAX_HOSTS]],
        considered=len(plan.verdicts),
        rejections=plan.rejections,
    )


def _verdict(verdict: Verdict) -> operation_pb2.HostVerdict:
    return operation_pb2.HostVerdict(
        host=f"hosts/{verdict.host.id}",
        display_name=verdict.host.name,
        eligible=verdict.eligible,
        filter=verdict.filter,
        reason=verdict.reason,
        score=verdict.score,
        weights=verdict.weights,
    )

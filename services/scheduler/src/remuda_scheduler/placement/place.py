"""`place(hosts, demand)`: the whole decision, pure and deterministic."""

from collections import Counter
from collections.abc import Iterable

from remuda_scheduler.placement.filters import FILTERS
from remuda_scheduler.placement.model import Demand, HostFacts, Plan, Verdict
from remuda_scheduler.placement.pools import candidate_pool
from remuda_scheduler.placement.weighers import WEIGHERS


def place(hosts: Iterable[HostFacts], demand: Demand) -> Plan:
    """Asks every filter of every host, weighs those that pass, takes the best.

    Equal scores fall to the host whose name sorts first, so that the same snapshot gives the same plan.
    """
    verdicts = sorted(
        (_judge(host, demand) for host in hosts),
        key=lambda verdict: (not verdict.eligible, -verdict.score, verdict.host.name, verdict.host.id),
    )
    chosen = verdicts[0] if verdicts and verdicts[0].eligible else None
    rejections = Counter(verdict.filter for verdict in verdicts if not verdict.eligible)
    return Plan(chosen=chosen, verdicts=verdicts, rejections=dict(rejections), demand=demand)


def _judge(host: HostFacts, demand: Demand) -> Verdict:
    for name, refuse in FILTERS.items():
        if (reason := refuse(host, demand)) is not None:
            return Verdict(host=host, filter=name, reason=reason)
    weights = {name: factor * weigh(host, demand) for name, (factor, weigh) in WEIGHERS.items()}
    pool = candidate_pool(host, demand)
    return Verdict(host=host, pool=pool.name if pool else "", score=sum(weights.values()), weights=weights)

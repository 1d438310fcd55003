"""Preflight: cheap filters for all hosts, real probes for the best of them, one table."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from remuda.agent.v1.probe_pb2 import AssessGuestRequest, GuestFacts
from remuda.compute.v1.moving_pb2 import MigrationCandidate
from remuda_core.errors import not_found
from remuda_core.ids import HostId, InstanceId
from remuda_core.names import host_name

from remuda_scheduler.placement.model import Demand, HostFacts, Plan
from remuda_scheduler.ports import PlacementRequest
from remuda_scheduler.preflight.facts import Facts, HostSide, Move, NoAnswer, Probe
from remuda_scheduler.preflight.judging import judge
from remuda_scheduler.preflight.ports import Hosts
from remuda_scheduler.preflight.prober import Prober
from remuda_scheduler.preflight.ranking import ranked, to_probe

MAX_CANDIDATES = 200
"""In one answer, so that it fits into a message with 10,000 hosts. Those that were probed come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A move to be checked."""

    instance: InstanceId
    placement: PlacementRequest
    """With its source; `host_id` is the target when one was named."""
    image_id: str = ""
    manifest_digest: str = ""
    allow_version_skew: bool = False
    max_downtime_ms: int = 0
    bandwidth_mib_s: int = 0
    probe_limit: int = 0
    """0: the default."""
    measure: bool = False
    """Measure the dirty rate now; else the last known one counts."""
    fresh: bool = False
    """Use no earlier probe again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    source: HostId
    candidates: Sequence[MigrationCandidate]
    """Best first; the source is none unless it was named."""
    plan: Plan
    """What the cheap filters think of every host."""


class Preflight:
    """Acts on nothing. Lives as long as one leadership."""

    def __init__(self, *, hosts: Hosts, prober: Prober) -> None:
        self._hosts = hosts
        self._prober = prober

    async def check(self, wanted: Wanted, *, patience: float = math.inf) -> Checked:
        """`patience`: seconds to wait for hosts that a new leader has not heard of yet.

        Raises HOST_NOT_FOUND when the source is no host that is known.
        """
        named = wanted.placement.host_id
        plan = await self._hosts.plan(wanted.placement, patience=patience)
        at = datetime.now(UTC)
        sides = {verdict.host.id: self._side(verdict.host) for verdict in plan.verdicts}
        source = sides.get(wanted.placement.source_host_id or HostId(""))
        if source is None:
            raise not_found(host_name(wanted.placement.source_host_id or HostId("unknown")))
        shown = [
            verdict
            for verdict in plan.verdicts
            if (verdict.host.id == named if named else verdict.host.id != source.placement.id)
        ]
        # To itself there is nothing to probe: the row says so.
        probing = to_probe(plan, limit=wanted.probe_limit, named=named) - {source.placement.id}
        plain = [
            Facts(move=_move(wanted, plan.demand), source=source, target=sides[verdict.host.id], at=at)
            for verdict in shown
        ]
        facts = await self._probe(wanted, plain, probing)
        scores = {verdict.host.id: verdict.score for verdict in shown}
        candidates = ranked(judge(one, score=scores[one.target.placement.id]) for one in facts)
        return Checked(source=source.placement.id, candidates=candidates[:MAX_CANDIDATES], plan=plan)

    async def _probe(
        self, wanted: Wanted, plain: Sequence[Facts], probing: frozenset[HostId]
    ) -> Sequence[Facts]:
        chosen = [facts for facts in plain if facts.target.placement.id in probing]
        if not chosen:
            return plain
        source = chosen[0].source
        measuring = asyncio.ensure_future(self._measure(wanted, source))
        try:
            guest = await self._prober.guest(source, wanted.instance)
            rate = await measuring if wanted.measure else _last_known(guest)
        finally:
            measuring.cancel()
            await asyncio.gather(measuring, return_exceptions=True)
        probed = await asyncio.gather(*(self._pair(wanted, facts, guest, rate) for facts in chosen))
        by_host = {facts.target.placement.id: facts for facts in probed}
        return [by_host.get(facts.target.placement.id, facts) for facts in plain]

    async def _measure(self, wanted: Wanted, source: HostSide) -> Probe[int] | None:
        return await self._prober.dirty_rate(source, wanted.instance) if wanted.measure else None

    async def _pair(
        self, wanted: Wanted, facts: Facts, guest: Probe[GuestFacts], rate: Probe[int] | None
    ) -> Facts:
        probes = await self._prober.pair(
            source=facts.source,
            target=facts.target,
            guest=guest,
            dirty_rate=rate,
            assessment=AssessGuestRequest(
                physical_networks=sorted(facts.move.demand.physical_networks),
                pool=facts.move.demand.pool,
                image_id=wanted.image_id,
                manifest_digest=wanted.manifest_digest,
            ),
            try_storage=facts.claims_same_storage,
            fresh=wanted.fresh,
        )
        return Facts(move=facts.move, source=facts.source, target=facts.target, at=facts.at, probes=probes)

    def _side(self, host: HostFacts) -> HostSide:
        inventory = self._hosts.inventory(host.id)
        return HostSide(
            placement=host,
            agent_version=inventory.agent_version,
            migration_address=inventory.migration_address,
            libvirt_version=inventory.libvirt_version,
            qemu_version=inventory.qemu_version,
        )


def _move(wanted: Wanted, demand: Demand) -> Move:
    return Move(
        demand=demand,
        allow_version_skew=wanted.allow_version_skew,
        max_downtime_ms=wanted.max_downtime_ms,
        bandwidth_mib_s=wanted.bandwidth_mib_s,
    )


def _last_known(guest: Probe[GuestFacts]) -> Probe[int] | None:
    if isinstance(guest.found, NoAnswer) or not guest.found.HasField("dirty_bytes_per_second"):
        return None
    return Probe(found=guest.found.dirty_bytes_per_second, seen_at=guest.seen_at)

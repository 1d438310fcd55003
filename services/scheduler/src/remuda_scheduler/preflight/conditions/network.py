"""The networks of every port exist on the target."""

from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.facts import Facts, NoAnswer
from remuda_scheduler.preflight.rows import FAIL, NOT_APPLICABLE, PASS, row, unknown

_CONDITION = MigrationCheck.CONDITION_NETWORK


def network(facts: Facts) -> MigrationCheck | None:
    needed = facts.move.demand.physical_networks
    if not needed:
        return row(facts, _CONDITION, NOT_APPLICABLE, source="the guest has no port")
    names = ", ".join(sorted(needed))
    required = f"a bridge for each of {names}"
    if facts.probes is None:
        missing = needed - facts.target.placement.physical_networks
        return _lacking(facts, missing, names, required) if missing else None
    probe = facts.probes.target
    if isinstance(probe.found, NoAnswer):
        return unknown(facts, _CONDITION, of=(probe,), target=probe, required=required)
    bridges = dict(probe.found.bridges)
    missing = needed - bridges.keys()
    if missing:
        return _lacking(facts, missing, names, required)
    seen = ", ".join(f"{name} on {bridges[name]}" for name in sorted(needed))
    return row(
        facts, _CONDITION, PASS, of=(probe,), source=f"ports on {names}", target=seen, required=required
    )


def _lacking(facts: Facts, missing: frozenset[str], names: str, required: str) -> MigrationCheck:
    lacks = ", ".join(sorted(missing))
    return row(
        facts,
        _CONDITION,
        FAIL,
        of=(facts.probes.target,) if facts.probes is not None else (),
        source=f"ports on {names}",
        target=f"no bridge for {lacks}",
        required=required,
        fix=f"On {facts.target.name}: make the bridge, and name it for {lacks} under [bridges] of the agent.",
    )

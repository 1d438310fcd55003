"""Both are configured for the same transport, and the source reached a port of the target's range."""

from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.facts import Facts, NoAnswer
from remuda_scheduler.preflight.rows import FAIL, PASS, row, unknown

_CONDITION = MigrationCheck.CONDITION_MIGRATION_TRANSPORT
_REQUIRED = "one transport on both hosts, and the target's migration ports open to the source"


def migration_transport(facts: Facts) -> MigrationCheck | None:
    here, there = facts.source.placement.migration_transport, facts.target.placement.migration_transport
    if here != there:
        fix = f"Set [migration] transport of both agents to the same value; the source has {here or 'none'}."
        return row(
            facts,
            _CONDITION,
            FAIL,
            source=here or "none",
            target=there or "none",
            required=_REQUIRED,
            fix=fix,
        )
    if facts.probes is None:
        return None
    probe = facts.probes.reach
    if isinstance(probe.found, NoAnswer):
        # Whose silence it was stands in the words.
        return unknown(facts, _CONDITION, of=(probe,), target=probe, required=_REQUIRED)
    reach, transport = probe.found, here or "no transport"
    where = f"{reach.address} port {reach.port}"
    if reach.heard:
        source, fix = f"{transport}; connected to {where}", ""
    else:
        source = f"{transport}; {where}: {reach.error or 'what was sent did not arrive'}"
        fix = (
            f"Open the migration ports of {facts.target.name} ([migration] port_min to port_max) to "
            f"{facts.source.name}: firewall, routes, the address it listens at."
        )
    return row(
        facts,
        _CONDITION,
        PASS if reach.heard else FAIL,
        of=(probe,),
        source=source,
        target=f"{there or 'no transport'}; listened at {where}",
        required=_REQUIRED,
        fix=fix,
    )

"""The target is up, schedulable, not the source, not fenced, its agent of a version that fits."""

from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.facts import Facts
from remuda_scheduler.preflight.rows import FAIL, PASS, row

_CONDITION = MigrationCheck.CONDITION_TARGET_AVAILABLE


def target_available(facts: Facts) -> MigrationCheck | None:
    refusal = _refusal(facts)
    return row(
        facts,
        _CONDITION,
        FAIL if refusal else PASS,
        source=f"{facts.source.placement.state}, agent {facts.source.agent_version or 'unknown'}",
        target=refusal[0] if refusal else f"up, agent {facts.target.agent_version or 'unknown'}",
        required="another host that is up and schedulable, with an agent of the source's release",
        fix=refusal[1] if refusal else "",
    )


def _refusal(facts: Facts) -> tuple[str, str] | None:
    """What was seen, and how to repair it."""
    host, demand = facts.target.placement, facts.move.demand
    if host.id == facts.source.placement.id:
        return "it is the source", "Name another host."
    if host.id in demand.excluded:
        return demand.excluded[host.id], "Name another host, or wait until that is over and check again."
    if host.state == "fenced":
        return "the host is fenced", "Bring the host back and let its agent attach; until then take another."
    if not host.up:
        return (
            f"the host is {host.state}",
            "Start its agent, or repair the network between it and the leader.",
        )
    # A host that is named is a decision of an operator, who may have cordoned it for just this.
    if host.cordoned and demand.host != host.id:
        return "the host is cordoned", "Uncordon the host, or name it as the target."
    return _version_refusal(facts.source.agent_version, facts.target.agent_version)


def _version_refusal(source: str, target: str) -> tuple[str, str] | None:
    if source and target and _release(source) == _release(target):
        return None
    return (
        f"agent {target or 'unknown'}, the source's is {source or 'unknown'}",
        "Upgrade the older agent: both have to be of one release.",
    )


def _release(version: str) -> tuple[str, ...]:
    """Major version; below 1.0 every minor version may change what agents say to each other."""
    parts = version.split(".")
    return tuple(parts[:2] if parts[0] == "0" else parts[:1])

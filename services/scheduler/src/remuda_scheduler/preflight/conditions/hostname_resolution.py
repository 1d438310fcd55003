"""Each side resolves the other's host name to its registered address.

libvirt gives QEMU the target's host name, and the wrong entry in /etc/hosts (127.0.1.1) sends the guest to
the source itself.
"""

from remuda.agent.v1.probe_pb2 import ResolveHostResponse
from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.facts import Facts, HostSide, NoAnswer, Probe
from remuda_scheduler.preflight.naming import leads_astray, registered_address
from remuda_scheduler.preflight.rows import FAIL, PASS, row, unknown

_CONDITION = MigrationCheck.CONDITION_HOSTNAME_RESOLUTION


def hostname_resolution(facts: Facts) -> MigrationCheck | None:
    if facts.probes is None:
        return None
    here, there = facts.probes.target_by_source, facts.probes.source_by_target
    required = (
        f"{facts.source.name} resolves {_needed(facts.target)}, {facts.target.name} {_needed(facts.source)}"
    )
    failed = [
        f"On {asking.name}: let its resolver, for example /etc/hosts, know {_needed(about)}."
        for asking, about, answer in (
            (facts.source, facts.target, here),
            (facts.target, facts.source, there),
        )
        if leads_astray(answer, about)
    ]
    silent = isinstance(here.found, NoAnswer) or isinstance(there.found, NoAnswer)
    if silent and not failed:
        return unknown(facts, _CONDITION, of=(here, there), source=here, target=there, required=required)
    return row(
        facts,
        _CONDITION,
        FAIL if failed else PASS,
        of=(here, there),
        source=_seen(here, facts.target),
        target=_seen(there, facts.source),
        required=required,
        fix=" ".join(failed),
    )


def _needed(about: HostSide) -> str:
    return f"{about.name} as {registered_address(about) or 'an address of its own, not of loopback'}"


def _seen(probe: Probe[ResolveHostResponse], about: HostSide) -> str:
    if isinstance(probe.found, NoAnswer):
        return probe.found.words
    if probe.found.addresses:
        return f"{about.name} is {', '.join(probe.found.addresses)}"
    return f"{about.name} is not resolved: {probe.found.error or 'no address'}"

"""The source opened the target's libvirt, as a migration does, and read its host name."""

from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.facts import Facts, NoAnswer
from remuda_scheduler.preflight.naming import leads_astray
from remuda_scheduler.preflight.rows import FAIL, PASS, UNKNOWN, row, unknown

_CONDITION = MigrationCheck.CONDITION_LIBVIRT_LISTENING


def libvirt_listening(facts: Facts) -> MigrationCheck | None:
    if facts.probes is None:
        return None
    name, transport = facts.target.name, facts.target.placement.migration_transport or "tls"
    uri = f"qemu+{transport}://{name}/system"
    required = f"{facts.source.name} opens {uri}, and {name} answers"
    probe = facts.probes.libvirt
    if isinstance(probe.found, NoAnswer):
        return unknown(facts, _CONDITION, of=(probe,), source=probe, required=required)
    said = probe.found.hostname
    if said and not probe.found.error and said != facts.source.name:
        return row(
            facts,
            _CONDITION,
            PASS,
            of=(probe,),
            source=f"opened {uri}",
            target=f"said to be {said}",
            required=required,
        )
    if leads_astray(facts.probes.target_by_source, facts.target):
        # Nothing is known of the target's libvirt then, and one cause is told in one row.
        return row(
            facts,
            _CONDITION,
            UNKNOWN,
            of=(probe,),
            source=f"{uri}: {probe.found.error or 'not reached'}",
            target="not reached: its name does not lead there",
            required=required,
            fix="See HOSTNAME_RESOLUTION first, and check again.",
        )
    if said and said == facts.source.name:
        seen, answered = f"{uri} led back to the source", f"said to be {said}"
        fix = f"Let {facts.source.name} resolve {name} to the target's own address."
    else:
        seen, answered = f"{uri}: {probe.found.error or 'it did not say its name'}", "not reached"
        fix = (
            f"On {name}: let libvirt listen for {transport} (virtproxyd-{transport}.socket or "
            f"libvirtd-{transport}.socket), open its port to {facts.source.name}, "
            "and check both certificates."
        )
    return row(facts, _CONDITION, FAIL, of=(probe,), source=seen, target=answered, required=required, fix=fix)

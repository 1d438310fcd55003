"""libvirt and QEMU of the same version, and the guest's machine type is offered."""

from remuda.agent.v1.probe_pb2 import AssessGuestResponse, GuestFacts
from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.facts import Facts, NoAnswer
from remuda_scheduler.preflight.rows import FAIL, PASS, UNKNOWN, WARN, row, unknown
from remuda_scheduler.preflight.wording import overridden, version

_CONDITION = MigrationCheck.CONDITION_LIBVIRT_VERSION
_REQUIRED = "the source's versions of libvirt and QEMU, and the guest's machine type"
_SKEW = "Upgrade the source, or ask with allow_version_skew and accept that the way back is not certain."


def libvirt_version(facts: Facts) -> MigrationCheck | None:
    if facts.probes is None:
        return _known_without_asking(facts)
    guest, target = facts.probes.guest, facts.probes.target
    if isinstance(guest.found, NoAnswer):
        return unknown(facts, _CONDITION, of=(guest,), source=guest, required=_REQUIRED)
    if isinstance(target.found, NoAnswer):
        return unknown(facts, _CONDITION, of=(guest, target), target=target, required=_REQUIRED)
    verdict, fix = _judge(facts.move.allow_version_skew, guest.found, target.found)
    machine = guest.found.machine_type
    return row(
        facts,
        _CONDITION,
        verdict,
        of=(guest, target),
        source=_versions(guest.found.libvirt_version, guest.found.qemu_version, machine),
        target=_versions(
            target.found.libvirt_version,
            target.found.qemu_version,
            machine if target.found.machine_type_offered else f"no {machine or 'machine type'}",
        )
        + overridden(target.found),
        required=_REQUIRED,
        fix=fix,
    )


def _judge(
    skew_allowed: bool, guest: GuestFacts, target: AssessGuestResponse
) -> tuple["MigrationCheck.Verdict.ValueType", str]:
    if not target.machine_type_offered:
        return FAIL, f"Take a host whose QEMU offers {guest.machine_type or 'the machine type of the guest'}."
    pairs = (
        ("libvirt", guest.libvirt_version, target.libvirt_version),
        ("QEMU", guest.qemu_version, target.qemu_version),
    )
    older = [noun for noun, here, there in pairs if 0 < there < here]
    if older:
        # Never asked for, whatever is allowed: an older QEMU does not understand the newer one's stream.
        return FAIL, f"Upgrade {' and '.join(older)} on the target: it is older than at the source."
    if any(here <= 0 or there <= 0 for _, here, there in pairs):
        return UNKNOWN, "See why libvirt does not say its versions there, and check again."
    if any(there > here for _, here, there in pairs):
        return (WARN, "The way back is not certain.") if skew_allowed else (FAIL, _SKEW)
    return PASS, ""


def _known_without_asking(facts: Facts) -> MigrationCheck | None:
    """The guest's own machine type is on record, and what QEMU offers is in the inventory."""
    machine = facts.move.demand.machine_type
    if not machine or machine in facts.target.placement.machine_types:
        return None
    source, target = facts.source, facts.target
    return row(
        facts,
        _CONDITION,
        FAIL,
        source=_versions(source.libvirt_version, source.qemu_version, machine),
        target=_versions(target.libvirt_version, target.qemu_version, f"no {machine}"),
        required=_REQUIRED,
        fix=f"Take a host whose QEMU offers {machine}.",
    )


def _versions(libvirt: int, qemu: int, machine: str) -> str:
    return f"libvirt {version(libvirt)}, QEMU {version(qemu)}, {machine or 'machine type unknown'}"

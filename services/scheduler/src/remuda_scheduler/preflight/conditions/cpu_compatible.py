"""The target's hypervisor can give the guest the CPU it runs on, and the source's could take it back."""

from remuda.agent.v1.probe_pb2 import AssessGuestResponse
from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.facts import Facts, NoAnswer, Probe
from remuda_scheduler.preflight.rows import FAIL, PASS, UNKNOWN, WARN, row, unknown
from remuda_scheduler.preflight.wording import overridden

_CONDITION = MigrationCheck.CONDITION_CPU_COMPATIBLE
_REQUIRED = "a hypervisor CPU with every feature of the guest's, of the same architecture and domain type"
_OTHER_CPU = (
    "Take a host with a CPU like the source's, or let the guest be started anew with a CPU model "
    "that both hosts have."
)


def cpu_compatible(facts: Facts) -> MigrationCheck | None:
    known = _known_without_asking(facts)
    if known is not None or facts.probes is None:
        return known
    guest, target = facts.probes.guest, facts.probes.target
    if isinstance(guest.found, NoAnswer):
        return unknown(facts, _CONDITION, of=(guest,), source=guest, required=_REQUIRED)
    if isinstance(target.found, NoAnswer):
        return unknown(facts, _CONDITION, of=(guest, target), target=target, required=_REQUIRED)
    return _judge(facts, guest.found.domain_type, target.found, facts.probes.source)


def _judge(
    facts: Facts, domain_type: str, seen: AssessGuestResponse, back: Probe[AssessGuestResponse]
) -> MigrationCheck:
    assert facts.probes is not None
    of = (facts.probes.guest, facts.probes.target, back)
    here = f"the guest runs under {domain_type or 'unknown'}"
    there = f"{_cpu(seen)}{overridden(seen)}"
    if seen.domain_type and domain_type and seen.domain_type != domain_type:
        there = f"guests run under {seen.domain_type}"
        fix = (
            "A running guest cannot change between kvm and qemu: take a host that runs guests as its source."
        )
        return row(facts, _CONDITION, FAIL, of=of, source=here, target=there, required=_REQUIRED, fix=fix)
    match seen.cpu:
        case AssessGuestResponse.CPU_IDENTICAL | AssessGuestResponse.CPU_SUPERSET:
            way_back = _way_back(back)
            verdict = WARN if way_back else PASS
            fix = "Have a host in mind that could take the guest from there." if way_back else ""
            here = f"{here}; {way_back}" if way_back else here
        case AssessGuestResponse.CPU_INCOMPATIBLE:
            verdict, fix = FAIL, _OTHER_CPU
        case _:
            verdict, fix = UNKNOWN, "See the words of libvirt on the target, and check again."
    return row(facts, _CONDITION, verdict, of=of, source=here, target=there, required=_REQUIRED, fix=fix)


def _known_without_asking(facts: Facts) -> MigrationCheck | None:
    source, target = facts.source.placement, facts.target.placement
    for noun, here, there in (
        ("architecture", source.architecture, target.architecture),
        ("domain type", source.domain_type, target.domain_type),
    ):
        if here != there and here:
            return row(
                facts,
                _CONDITION,
                FAIL,
                source=f"{noun} {here}",
                target=f"{noun} {there or 'unknown'}",
                required=_REQUIRED,
                fix=f"Take a host whose {noun} is {here}.",
            )
    return None


def _way_back(back: Probe[AssessGuestResponse]) -> str:
    """Why the guest may not come back; empty: it can."""
    if isinstance(back.found, NoAnswer):
        return f"whether it could come back is not known: {back.found.words}"
    if back.found.cpu in (AssessGuestResponse.CPU_IDENTICAL, AssessGuestResponse.CPU_SUPERSET):
        return ""
    return f"a one-way move: the source could not take it back ({_cpu(back.found)})"


def _cpu(seen: AssessGuestResponse) -> str:
    word = (
        AssessGuestResponse.Cpu.Name(seen.cpu)
        .removeprefix("CPU_")
        .lower()
        .replace("unspecified", "not known")
    )
    return f"{word}: {seen.cpu_detail}" if seen.cpu_detail else word

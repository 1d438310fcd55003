"""Words that several conditions share."""

from remuda.agent.v1.probe_pb2 import AssessGuestResponse

_MIB = 1 << 20


def version(number: int) -> str:
    """libvirt's way of counting: major * 1,000,000 + minor * 1,000 + release."""
    if number <= 0:
        return "unknown"
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def overridden(seen: AssessGuestResponse) -> str:
    """A lab's operator may pretend facts; whoever reads the row must know."""
    return f" (overridden for a lab: {', '.join(seen.overridden)})" if seen.overridden else ""


def mib(size: int) -> str:
    return f"{size // _MIB} MiB"

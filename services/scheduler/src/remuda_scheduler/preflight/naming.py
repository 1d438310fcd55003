"""Whether a resolver's answer about a host leads to that host."""

from ipaddress import ip_address

from remuda.agent.v1.probe_pb2 import ResolveHostResponse

from remuda_scheduler.preflight.facts import HostSide, NoAnswer, Probe


def leads_astray(probe: Probe[ResolveHostResponse], about: HostSide) -> bool:
    """It is known that the answer is wrong: none, an address of loopback, or not the registered one."""
    if isinstance(probe.found, NoAnswer):
        return False
    addresses = [_canonical(address) for address in probe.found.addresses]
    if not addresses or any(_loops(address) for address in addresses):
        return True
    registered = registered_address(about)
    return bool(registered) and registered not in addresses


def registered_address(host: HostSide) -> str:
    """Where its migrations come in, if that was registered as a number."""
    return _canonical(host.migration_address) if _is_address(host.migration_address) else ""


def _canonical(address: str) -> str:
    return str(ip_address(address)) if _is_address(address) else address


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _loops(address: str) -> bool:
    return _is_address(address) and ip_address(address).is_loopback

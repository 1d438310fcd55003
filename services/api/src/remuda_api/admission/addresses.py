"""The IPv4 addresses of a network: which record is sound, and which address a port may ask for. Pure."""

from ipaddress import IPv4Address, IPv4Network

from remuda.compute.v1 import network_pb2 as public
from remuda_core.errors import invalid_argument

_LARGEST_PREFIX = 30
"""A /31 or /32 has no room for a network address, a broadcast address and a guest."""


def check_network(network: public.Network) -> public.Network:
    """A copy with the allocation range filled in. Raises RemudaError INVALID_ARGUMENT for the first field
    that does not fit the others."""
    checked = public.Network()
    checked.CopyFrom(network)
    try:
        cidr = IPv4Network(network.cidr)
    except ValueError as error:
        # protovalidate lets host bits pass: 10.0.0.5/24 is an address, not a network.
        raise invalid_argument("network.cidr", str(error)) from None
    if cidr.prefixlen > _LARGEST_PREFIX:
        raise invalid_argument("network.cidr", f"is smaller than a /{_LARGEST_PREFIX}")
    first, last = cidr.network_address + 1, cidr.broadcast_address - 1
    gateway = _inside(network.gateway, "network.gateway", cidr)
    start = _inside(network.allocation_start, "network.allocation_start", cidr)
    end = _inside(network.allocation_end, "network.allocation_end", cidr)
    if start is None:
        start = gateway + 1 if gateway is not None and gateway < last else first
    end = end or last
    if start > end:
        raise invalid_argument("network.allocation_end", f"comes before allocation_start {start}")
    if start == end == gateway:
        raise invalid_argument("network.gateway", "is the only address of the allocation range")
    checked.allocation_start, checked.allocation_end = str(start), str(end)
    return checked


def check_address(network: public.Network, address: str, field: str) -> None:
    """An address that a port asks for. It may lie outside the allocation range, as static ones do."""
    found = _inside(address, field, IPv4Network(network.cidr))
    if network.gateway and found == IPv4Address(network.gateway):
        raise invalid_argument(field, f"{address} is the gateway")


def _inside(address: str, field: str, cidr: IPv4Network) -> IPv4Address | None:
    if not address:
        return None
    found = IPv4Address(address)
    if found not in cidr or found in (cidr.network_address, cidr.broadcast_address):
        raise invalid_argument(field, f"{address} is no host address of {cidr}")
    return found

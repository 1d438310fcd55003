"""Addresses and MACs of instances: which one is next (pure), and the keys that make them unique.

An address is taken by the key ports/<network>/<address>, a MAC by macs/<mac>; both are created by a txn that
compares them absent. So two launches can never get the same, whatever their caches showed.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from remuda.compute.v1.network_pb2 import Network
from remuda.store.v1.instance_pb2 import Port
from remuda_core.etcd import ops
from remuda_core.etcd.keys import Keys
from remuda_core.ids import InstanceId, NetworkId

_OUI = "52:54:00"
"""QEMU's and libvirt's locally used prefix for guests."""


def free_addresses(network: Network, taken: Collection[str]) -> Iterator[str]:
    """Addresses of the allocation range that nobody has, lowest first; never the gateway's."""
    cidr = IPv4Network(network.cidr, strict=False)
    first = IPv4Address(network.allocation_start or cidr.network_address + 1)
    last = IPv4Address(network.allocation_end or cidr.broadcast_address - 1)
    for number in range(int(first), int(last) + 1):
        address = str(IPv4Address(number))
        if address != network.gateway and address not in taken:
            yield address


def derived_mac(instance: InstanceId, index: int, attempt: int) -> str:
    """The MAC of an instance's port number `index`. `attempt` > 0 gives others, for when it is taken."""
    digest = hashlib.sha256(f"{instance}/{index}/{attempt}".encode()).digest()
    return f"{_OUI}:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}"


def freed_ports(keys: Keys, ports: Iterable[Port]) -> list[ops.Op]:
    """Operations that give addresses and MACs back."""
    return [
        op
        for port in ports
        for op in (
            ops.delete(keys.port(NetworkId(port.network), port.address)),
            ops.delete(keys.mac(port.mac_address)),
        )
    ]

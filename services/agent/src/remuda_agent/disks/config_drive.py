"""What stands on a guest's config drive. Pure.

OpenStack's ConfigDrive v2 (https://docs.openstack.org/nova/latest/user/metadata.html), which cloud-init and
its kin read: a file system with the label config-2 and the documents below openstack/latest/.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from ipaddress import IPv4Interface
from typing import Any

from remuda.agent.v1.common_pb2 import DomainSpec, Nic

LABEL = "config-2"
SIZE_BYTES = 8 << 20
"""Room for everything that fits into a request. The same on every host, as block migration demands."""


def documents(spec: DomainSpec) -> Mapping[str, bytes]:
    """Path below the root of the drive -> content; the same spec gives the same bytes on every host."""
    meta = {
        "uuid": spec.instance_id,
        "name": spec.hostname,
        "hostname": spec.hostname,
        "launch_index": 0,
        "meta": {"remuda_instance": spec.instance_name},
    }
    files = {
        "openstack/latest/meta_data.json": _encoded(meta),
        "openstack/latest/network_data.json": _encoded(_network_data(spec)),
    }
    if spec.user_data:
        files["openstack/latest/user_data"] = spec.user_data
    return files


def volume_id(spec: DomainSpec) -> int:
    """32 bits; a file system's serial number is otherwise drawn from the clock."""
    return zlib.crc32(spec.instance_id.encode())


def _network_data(spec: DomainSpec) -> dict[str, Any]:
    servers = dict.fromkeys(server for nic in spec.nics for server in nic.dns_servers)
    return {
        "links": [_link(number, nic) for number, nic in enumerate(spec.nics)],
        "networks": [_network(number, nic) for number, nic in enumerate(spec.nics)],
        "services": [{"type": "dns", "address": server} for server in servers],
    }


def _link(number: int, nic: Nic) -> dict[str, Any]:
    link: dict[str, Any] = {
        "id": f"link{number}",
        "vif_id": nic.port_id,
        "type": "phy",
        "ethernet_mac_address": nic.mac_address,
    }
    if nic.mtu:
        link["mtu"] = nic.mtu
    return link


def _network(number: int, nic: Nic) -> dict[str, Any]:
    network: dict[str, Any] = {"id": f"network{number}", "link": f"link{number}", "type": "ipv4_dhcp"}
    if nic.address:
        interface = IPv4Interface(f"{nic.address}/{nic.prefix_length}")
        network |= {
            "type": "ipv4",
            "ip_address": nic.address,
            "netmask": str(interface.netmask),
            "routes": [],
        }
        if nic.gateway:
            route = {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": nic.gateway}  # noqa: S104
            network["routes"] = [route]
    return network


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode() + b"\n"

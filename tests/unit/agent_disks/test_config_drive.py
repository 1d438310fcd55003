"""The documents of a config drive."""

import json

from remuda.agent.v1.common_pb2 import DomainSpec, Nic
from remuda_agent.disks.config_drive import documents, volume_id

SPEC = DomainSpec(
    instance_id="7c8d5f3e-1111-4222-8333-944455556666",
    instance_name="projects/demo/instances/7c8d5f3e",
    hostname="web",
    user_data=b"#!/bin/sh\nexit 7\n",
    nics=[
        Nic(
            port_id="p0",
            mac_address="52:54:00:00:00:01",
            address="10.78.0.50",
            prefix_length=20,
            gateway="10.78.0.1",
            dns_servers=["10.78.0.1", "9.9.9.9"],
            mtu=1400,
        ),
        Nic(port_id="p1", mac_address="52:54:00:00:00:02", dns_servers=["9.9.9.9"]),
    ],
)


def test_the_guest_reads_who_it_is() -> None:
    meta = json.loads(documents(SPEC)["openstack/latest/meta_data.json"])
    assert meta["uuid"] == SPEC.instance_id
    assert meta["hostname"] == meta["name"] == "web"


def test_every_port_has_a_link_and_a_network_with_its_address_mask_and_route() -> None:
    data = json.loads(documents(SPEC)["openstack/latest/network_data.json"])
    assert data["links"] == [
        {
            "id": "link0",
            "vif_id": "p0",
            "type": "phy",
            "ethernet_mac_address": "52:54:00:00:00:01",
            "mtu": 1400,
        },
        {"id": "link1", "vif_id": "p1", "type": "phy", "ethernet_mac_address": "52:54:00:00:00:02"},
    ]
    static, dynamic = data["networks"]
    assert static["ip_address"] == "10.78.0.50"
    assert static["netmask"] == "255.255.240.0"
    assert static["routes"] == [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.78.0.1"}]
    assert dynamic == {"id": "network1", "link": "link1", "type": "ipv4_dhcp"}
    assert [service["address"] for service in data["services"]] == ["10.78.0.1", "9.9.9.9"]


def test_user_data_is_given_as_it_came_and_only_when_there_is_some() -> None:
    assert documents(SPEC)["openstack/latest/user_data"] == SPEC.user_data
    assert "openstack/latest/user_data" not in documents(DomainSpec(instance_id="x"))


def test_the_same_guest_gets_the_same_drive_on_every_host() -> None:
    again = DomainSpec.FromString(SPEC.SerializeToString())
    assert documents(again) == documents(SPEC)
    assert volume_id(again) == volume_id(SPEC) != volume_id(DomainSpec(instance_id="other"))
    assert 0 <= volume_id(SPEC) < 2**32

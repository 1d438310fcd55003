"""Makes a fresh cluster usable, through its public API: hosts, flavors, a network."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import grpc
from remuda.compute.v1 import flavor_pb2, host_pb2, network_pb2
from remuda.compute.v1.flavor_pb2_grpc import FlavorServiceStub
from remuda.compute.v1.host_pb2_grpc import HostServiceStub
from remuda.compute.v1.network_pb2_grpc import NetworkServiceStub

from remuda_lab.cluster.settings import PHYSICAL_NETWORK
from remuda_lab.layout import FABRIC_GUEST_ADDRESS, GUESTS, HostPlan
from remuda_lab.waiting import wait_for

NETWORK = "guests"
FLAVORS = {
    "tiny": flavor_pb2.Flavor(vcpus=1, memory_mib=96),
    "small": flavor_pb2.Flavor(vcpus=1, memory_mib=128, disk_gib=1),
    "medium": flavor_pb2.Flavor(vcpus=2, memory_mib=256, disk_gib=2),
}
_CALL_SECONDS = 10.0


def create_host(channel: grpc.Channel, plan: HostPlan) -> str:
    """Register a host; returns the one-time token for its agent. Raises grpc.RpcError."""
    request = host_pb2.CreateHostRequest(
        host_id=plan.uuid, host=host_pb2.Host(display_name=plan.name), request_id=str(uuid.uuid4())
    )
    answer = HostServiceStub(channel).CreateHost(request, timeout=_CALL_SECONDS, wait_for_ready=True)
    return answer.enrolment_token


def wait_hosts_up(channel: grpc.Channel, names: Sequence[str], *, timeout: float) -> None:
    """Wait until the leader counts these hosts as UP, with their inventory. Raises WaitTimeout."""
    seen: dict[str, str] = {}

    def all_up() -> bool:
        answer = HostServiceStub(channel).ListHosts(host_pb2.ListHostsRequest(), timeout=_CALL_SECONDS)
        seen.clear()
        seen.update({host.display_name: host_pb2.Host.State.Name(host.state) for host in answer.hosts})
        up = {
            host.display_name
            for host in answer.hosts
            if host.state == host_pb2.Host.STATE_UP and host.inventory.pools
        }
        return up >= set(names)

    wait_for(f"hosts {', '.join(names)} are up", all_up, timeout=timeout, interval=0.1, status=lambda: seen)


def create_catalogue(channel: grpc.Channel) -> None:
    """Flavors and the guests' network. Raises grpc.RpcError."""
    for name, flavor in FLAVORS.items():
        FlavorServiceStub(channel).CreateFlavor(
            flavor_pb2.CreateFlavorRequest(flavor_id=name, flavor=flavor, request_id=str(uuid.uuid4())),
            timeout=_CALL_SECONDS,
        )
    base = GUESTS.network_address
    NetworkServiceStub(channel).CreateNetwork(
        network_pb2.CreateNetworkRequest(
            network_id=NETWORK,
            network=network_pb2.Network(
                physical_network=PHYSICAL_NETWORK,
                cidr=str(GUESTS),
                gateway=str(FABRIC_GUEST_ADDRESS),
                allocation_start=str(base + 50),
                allocation_end=str(base + 199),
            ),
            request_id=str(uuid.uuid4()),
        ),
        timeout=_CALL_SECONDS,
    )

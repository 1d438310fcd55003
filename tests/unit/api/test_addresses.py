"""Networks and the addresses on them."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remuda.compute.v1.network_pb2 import Network
from remuda_api.admission.addresses import check_address, check_network
from remuda_core.errors import RemudaError


@pytest.mark.parametrize(
    ("gateway", "start"), [("", "10.0.0.1"), ("10.0.0.1", "10.0.0.2"), ("10.0.0.254", "10.0.0.1")]
)
def test_the_allocation_range_is_filled_in_from_the_network(gateway: str, start: str) -> None:
    checked = check_network(Network(cidr="10.0.0.0/24", gateway=gateway))
    assert (checked.allocation_start, checked.allocation_end) == (start, "10.0.0.254")


@given(st.integers(min_value=8, max_value=30), st.integers(min_value=0, max_value=2**32 - 1))
def test_a_filled_in_range_holds_only_host_addresses(prefix: int, seed: int) -> None:
    cidr = IPv4Network((seed, prefix), strict=False)
    checked = check_network(Network(cidr=str(cidr), gateway=str(cidr.network_address + 1)))
    start, end = IPv4Address(checked.allocation_start), IPv4Address(checked.allocation_end)
    assert cidr.network_address < start <= end < cidr.broadcast_address


def test_a_range_that_holds_only_the_gateway_is_refused() -> None:
    network = Network(
        cidr="10.0.0.0/24", gateway="10.0.0.5", allocation_start="10.0.0.5", allocation_end="10.0.0.5"
    )
    with pytest.raises(RemudaError):
        check_network(network)


@pytest.mark.parametrize("address", ["10.0.0.0", "10.0.0.255", "10.0.1.4", "10.0.0.1"])
def test_a_port_gets_neither_a_foreign_address_nor_the_gateway(address: str) -> None:
    with pytest.raises(RemudaError):
        check_address(Network(cidr="10.0.0.0/24", gateway="10.0.0.1"), address, "field")
    check_address(Network(cidr="10.0.0.0/24", gateway="10.0.0.1"), "10.0.0.2", "field")

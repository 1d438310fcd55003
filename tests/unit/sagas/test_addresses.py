"""Which address and which MAC is next."""

import re
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st
from remuda.compute.v1.network_pb2 import Network
from remuda_core.ids import InstanceId
from remuda_scheduler.addresses import derived_mac, free_addresses

NETWORK = Network(cidr="10.78.0.0/24", gateway="10.78.0.1")


def test_the_lowest_free_address_comes_first() -> None:
    taken = {"10.78.0.2", "10.78.0.4"}
    assert list(islice(free_addresses(NETWORK, taken), 3)) == ["10.78.0.3", "10.78.0.5", "10.78.0.6"]


def test_network_gateway_and_broadcast_are_never_given() -> None:
    given_out = set(free_addresses(NETWORK, ()))
    assert len(given_out) == 253
    assert not given_out & {"10.78.0.0", "10.78.0.1", "10.78.0.255"}


def test_the_allocation_range_is_kept() -> None:
    network = Network(cidr="10.78.0.0/24", allocation_start="10.78.0.10", allocation_end="10.78.0.12")
    assert list(free_addresses(network, {"10.78.0.11"})) == ["10.78.0.10", "10.78.0.12"]


def test_a_network_that_is_used_up_has_none() -> None:
    assert list(free_addresses(Network(cidr="10.78.0.0/30", gateway="10.78.0.1"), {"10.78.0.2"})) == []


@given(st.uuids(), st.integers(0, 7), st.integers(0, 100))
def test_a_mac_is_a_local_unicast_one_and_always_the_same(instance: object, index: int, attempt: int) -> None:
    mac = derived_mac(InstanceId(str(instance)), index, attempt)
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", mac)
    assert mac == derived_mac(InstanceId(str(instance)), index, attempt)


def test_another_attempt_gives_another_mac() -> None:
    instance = InstanceId("3d0c6a1e-0000-4000-8000-000000000000")
    assert len({derived_mac(instance, 0, attempt) for attempt in range(10)}) == 10

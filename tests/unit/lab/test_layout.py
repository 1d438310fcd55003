"""Names and addresses of a lab."""

from __future__ import annotations

from pathlib import Path

import pytest
from remuda_lab.errors import LabError
from remuda_lab.layout import (
    FABRIC_GUEST_ADDRESS,
    FABRIC_MANAGEMENT_ADDRESS,
    MANAGEMENT,
    SERVICE_ADDRESSES,
    host_number,
    hosts_file,
    lab_paths,
    mac_of,
    plan_hosts,
)


def test_hosts_have_addresses_of_their_own_and_the_first_two_share_a_pool() -> None:
    plans = plan_hosts("demo", 3)
    assert [plan.name for plan in plans] == ["host1", "host2", "host3"]
    assert [str(plan.address) for plan in plans] == ["10.77.0.11", "10.77.0.12", "10.77.0.13"]
    assert [plan.shares_pool for plan in plans] == [True, True, False]
    assert not {plan.address for plan in plans} & set(SERVICE_ADDRESSES.values())
    assert all(plan.address in MANAGEMENT for plan in plan_hosts("demo", 99))


def test_a_host_keeps_its_uuid_in_one_lab_and_differs_between_labs() -> None:
    assert plan_hosts("a", 2) == plan_hosts("a", 2)
    assert plan_hosts("a", 1)[0].uuid != plan_hosts("b", 1)[0].uuid
    assert len({plan.uuid for plan in plan_hosts("a", 99)}) == 99


def test_every_address_has_a_mac_of_its_own_that_nobody_else_may_have() -> None:
    addresses = [plan.address for plan in plan_hosts("a", 99)]
    macs = [mac_of(one) for one in (*addresses, FABRIC_MANAGEMENT_ADDRESS, FABRIC_GUEST_ADDRESS)]
    assert len(set(macs)) == len(macs)
    # Bit 1 of the first octet: locally administered; bit 0 would be a group.
    assert {int(mac[:2], 16) & 0b11 for mac in macs} == {0b10}
    assert mac_of(FABRIC_MANAGEMENT_ADDRESS) == "02:00:0a:4d:00:01"


def test_interface_names_fit_the_kernels_fifteen_characters() -> None:
    for plan in plan_hosts("a", 99):
        assert max(len(plan.management_link), len(plan.guest_link)) <= 15


@pytest.mark.parametrize("count", [0, 100, -1])
def test_a_lab_of_no_or_too_many_hosts_is_refused(count: int) -> None:
    with pytest.raises(LabError, match="1 to 99"):
        plan_hosts("a", count)


@pytest.mark.parametrize("name", ["host0", "host", "fabric", "host1/..", "HOST1", "host100"])
def test_what_is_no_host_is_named_in_the_error(name: str) -> None:
    with pytest.raises(LabError, match="host1, host2"):
        host_number(name)


def test_every_name_resolves_and_no_hosts_own_name_is_loopback() -> None:
    plans = plan_hosts("a", 2)
    lines = [line.split() for line in hosts_file(plans).splitlines()]
    names = {name: address for address, *rest in lines for name in rest}
    assert names["host1"] == "10.77.0.11"
    assert names["host2"] == "10.77.0.12"
    assert names["api"] == "10.77.0.1"
    assert [rest for address, *rest in lines if address.startswith("127.")] == [["localhost"]]


def test_the_labs_directory_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REMUDA_LAB_DIR", raising=False)
    assert lab_paths("x").root == tmp_path.resolve() / ".lab" / "x"
    monkeypatch.setenv("REMUDA_LAB_DIR", str(tmp_path / "labs"))
    assert lab_paths("x").root == tmp_path.resolve() / "labs" / "x"


@pytest.mark.parametrize("place", ["/etc/labs", "/run/labs"])
def test_a_place_that_a_hosts_own_tree_would_hide_is_refused(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMUDA_LAB_DIR", place)
    with pytest.raises(LabError, match="of their own"):
        lab_paths("x")


@pytest.mark.parametrize("name", ["", "../x", "a b", "A", "-a", "a" * 32])
def test_a_lab_name_that_is_no_plain_word_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="no name for a lab"):
        lab_paths(name)

"""Physical networks and their bridges."""

from pathlib import Path

import pytest
from remuda_agent.network.bridges import Bridges, PretendedBridges
from remuda_core.errors import Reason, RemudaError


@pytest.fixture
def bridges(tmp_path: Path) -> Bridges:
    (tmp_path / "br0" / "bridge").mkdir(parents=True)
    (tmp_path / "eth0").mkdir()
    return Bridges({"guests": "br0", "storage": "br1", "wrong": "eth0"}, sys_class_net=tmp_path)


def test_a_network_has_the_bridge_it_is_mapped_to(bridges: Bridges) -> None:
    assert bridges.bridge("guests") == "br0"
    bridges.check(["guests", "guests"])


@pytest.mark.parametrize(
    ("network", "words"),
    [("storage", "br1"), ("wrong", "eth0"), ("public", "no bridge configured")],
)
def test_what_is_missing_is_named(bridges: Bridges, network: str, words: str) -> None:
    with pytest.raises(RemudaError, match=words) as refused:
        bridges.check(["guests", network])
    assert refused.value.reason is Reason.STEP_FAILED
    assert network in str(refused.value)


def test_only_networks_whose_bridge_is_there_are_offered(bridges: Bridges, tmp_path: Path) -> None:
    assert bridges.physical_networks() == ["guests"]
    (tmp_path / "br1" / "bridge").mkdir(parents=True)
    assert bridges.physical_networks() == ["guests", "storage"]


def test_the_bridges_of_several_networks_are_named_and_missing_ones_told(bridges: Bridges) -> None:
    assert bridges.bridges(["guests"]) == {"guests": "br0"}
    assert bridges.missing() == {"storage": "br1", "wrong": "eth0"}
    with pytest.raises(RemudaError):
        bridges.bridges(["guests", "storage"])


def test_a_host_that_runs_no_guests_pretends_its_bridges(tmp_path: Path) -> None:
    pretended = PretendedBridges({"guests": "br0"}, sys_class_net=tmp_path)
    assert (pretended.physical_networks(), pretended.missing()) == (["guests"], {})
    with pytest.raises(RemudaError):
        pretended.check(["public"])

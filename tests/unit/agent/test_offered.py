"""What a host offers: only what it really has."""

from pathlib import Path

import pytest
import structlog
from remuda.compute.v1.host_pb2 import HostPool
from remuda_agent import opening
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor
from remuda_agent.inventory import Inventory
from remuda_agent.network.bridges import Bridges
from remuda_agent.opening import open_hypervisor
from remuda_agent.overrides import FactsOverride
from remuda_agent.probe.domain_type import DomainType
from remuda_agent.settings import AgentSettings, PoolSettings


class NoPools:
    def describe(self) -> list[HostPool]:
        return []


def settings(directory: Path) -> AgentSettings:
    return AgentSettings(
        listen="127.0.0.1:0",
        name="a",
        host_uuid="3f1c0f0e-5f7b-4f6e-9d2d-5b7f6c1b2a10",
        schedulers=("127.0.0.1:1",),
        pools=(PoolSettings(name="local", path=directory),),
        bridges={"blue": "br0", "red": "br1"},
    )


async def test_a_network_is_offered_as_long_as_its_bridge_is_there(tmp_path: Path) -> None:
    configured = settings(tmp_path)
    inventory = Inventory(
        hypervisor=FakeHypervisor(FakeFabric(), "a"),
        pools=NoPools(),
        bridges=Bridges(configured.bridges, sys_class_net=tmp_path),
        settings=configured,
        override=FactsOverride(),
    )
    assert list((await inventory.now()).physical_networks) == []
    (tmp_path / "br1" / "bridge").mkdir(parents=True)
    assert list((await inventory.now()).physical_networks) == ["red"]


async def test_what_is_overridden_for_a_lab_is_offered_and_warned_of(tmp_path: Path) -> None:
    configured = settings(tmp_path)
    override = FactsOverride(cpu_missing_features=("avx2",), libvirt_version=8_000_000)
    inventory = Inventory(
        hypervisor=FakeHypervisor(FakeFabric(), "a"),
        pools=NoPools(),
        bridges=Bridges(configured.bridges, sys_class_net=tmp_path),
        settings=configured,
        override=override,
    )
    told = await inventory.now()
    assert (told.libvirt_version, told.qemu_version) == (8_000_000, 7_002_022)
    assert list(told.warnings) == [
        "cpu is overridden for a lab by --facts-override",
        "libvirt_version is overridden for a lab by --facts-override",
    ]


@pytest.mark.parametrize(("proven", "level"), [(True, "info"), (False, "warning")])
async def test_a_domain_type_that_nothing_has_proven_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proven: bool, level: str
) -> None:
    async def chosen(*, setting: str) -> DomainType:
        return DomainType(name="qemu", reason="no kernel to try", proven=proven)

    monkeypatch.setattr(opening, "choose_domain_type", chosen)
    configured = settings(tmp_path).model_copy(update={"libvirt_uri": "test:///nowhere"})
    with structlog.testing.capture_logs() as logs, pytest.raises(Exception, match="nowhere"):
        async with open_hypervisor(configured):
            pass
    [told] = [log for log in logs if log["event"] == "domain type"]
    assert (told["log_level"], told["reason"]) == (level, "no kernel to try")

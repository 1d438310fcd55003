"""What the leader is shown of copies in quarantine."""

from pathlib import Path

import pytest
from remuda.compute.v1.instance_pb2 import Instance
from remuda_agent.disks.owner import OWNER_FILE, write_owner
from remuda_agent.disks.pools import Pool, Pools
from remuda_agent.hypervisor import DomainDescription
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor
from remuda_agent.observer import Observer
from remuda_agent.quarantine import Found
from remuda_agent.quarantine.finding import copies_here
from remuda_agent.steps.ports import Owner
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId

WEB, DB, OTHER = InstanceId("web"), InstanceId("db"), InstanceId("other")
ME, THEM = HostId("me"), HostId("them")


@pytest.fixture
def fabric() -> FakeFabric:
    return FakeFabric()


@pytest.fixture
def hypervisor(fabric: FakeFabric) -> FakeHypervisor:
    return FakeHypervisor(fabric, "a")


async def define(hypervisor: FakeHypervisor, instance: InstanceId, epoch: int) -> None:
    await hypervisor.define(
        DomainDescription(
            instance_id=instance,
            title=instance,
            epoch=Epoch(epoch),
            operation_id=OperationId("operation"),
            vcpus=1,
            memory_mib=64,
            disk=Path("/disk"),
            config_drive=Path("/config"),
            console=Path("/console"),
        )
    )


async def test_files_that_wait_are_shown_with_their_epoch_and_without_a_domain(
    hypervisor: FakeHypervisor,
) -> None:
    await define(hypervisor, WEB, 3)
    observer = Observer(
        hypervisor,
        first_sequence=1,
        migrates=lambda _: False,
        waiting=lambda: {WEB: Epoch(2), DB: Epoch(5)},
    )
    seen = {one.instance_id: (one.epoch, one.power_state) for one in (await observer.everything()).instances}
    assert seen == {
        WEB: (3, Instance.POWER_STATE_SHUTOFF),
        DB: (5, Instance.POWER_STATE_ABSENT),
    }
    assert (await observer.one(DB)).epoch == 5
    assert (await observer.one(OTHER)).epoch == 0


async def test_what_is_found_are_domains_and_the_directories_of_this_host(
    fabric: FakeFabric, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    pools = Pools([Pool(name=name, path=tmp_path / name) for name in ("local", "shared")])
    for pool in pools:
        pool.path.mkdir()
    pools.prepare()
    for name, instance, host, epoch in (
        ("local", WEB, ME, 1),
        ("local", DB, ME, 4),
        ("shared", DB, ME, 6),
        ("shared", OTHER, THEM, 2),
    ):
        directory = tmp_path / name / "instances" / instance
        directory.mkdir()
        owner = Owner(
            instance_id=instance,
            host_id=host,
            epoch=Epoch(epoch),
            operation_id=OperationId("operation"),
            role="owner",
        )
        write_owner(directory, owner)
    await define(hypervisor, WEB, 3)
    assert await copies_here(hypervisor, pools, ME) == Found(copies={WEB: Epoch(3), DB: Epoch(6)})
    # What cannot be listed keeps no agent from starting; it is refused all the same.
    (tmp_path / "local" / "instances" / WEB / OWNER_FILE).write_text("{")
    assert await copies_here(hypervisor, pools, ME) == Found(
        copies={WEB: Epoch(3), DB: Epoch(6)}, complete=False
    )
    fabric.power_fail("a")
    assert await copies_here(hypervisor, pools, ME) == Found(copies={DB: Epoch(6)}, complete=False)
    (tmp_path / "shared").rename(tmp_path / "elsewhere")
    assert await copies_here(hypervisor, pools, ME) == Found(copies={DB: Epoch(4)}, complete=False)

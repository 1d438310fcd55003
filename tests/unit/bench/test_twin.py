"""The guest beside Remuda's: the same in all but its names."""

import xml.etree.ElementTree as ET
from pathlib import Path

from remuda_agent.hypervisor.libvirt import domain_xml
from remuda_agent.hypervisor.model import DomainDescription, DomainNic
from remuda_bench.migration.twin import Names, twin_drive, twin_xml
from remuda_core.ids import Epoch, InstanceId, OperationId

GUEST = Names(uid="11111111-aaaa-4bbb-8ccc-000000000001", mac="52:54:00:7c:ca:00", address="10.78.0.50")
TWIN = Names(uid="22222222-aaaa-4bbb-8ccc-000000000002", mac="52:54:00:01:02:03", address="10.78.0.240")
PLATFORM = domain_xml.Platform(domain_type="qemu", architecture="x86_64", emulator="/usr/bin/qemu")


def of_remuda(names: Names, where: str) -> str:
    directory = Path(f"/pool/{where}") / names.uid
    return domain_xml.build(
        DomainDescription(
            instance_id=InstanceId(names.uid),
            title="projects/demo/instances/web",
            epoch=Epoch(1),
            operation_id=OperationId("op"),
            vcpus=1,
            memory_mib=96,
            disk=directory / "disk.qcow2",
            config_drive=directory / "config.img",
            console=Path(f"/log/{names.uid}.console"),
            nics=(DomainNic(mac_address=names.mac, bridge="br0", mtu=0),),
            machine_type="pc-q35-7.2",
        ),
        PLATFORM,
    )


def test_the_twin_has_the_same_machine_under_its_own_names() -> None:
    twin = ET.fromstring(twin_xml(of_remuda(GUEST, "instances"), of=GUEST.uid, names=TWIN))  # noqa: S314
    wanted = ET.fromstring(of_remuda(TWIN, "bench"))  # noqa: S314
    for tag in ("metadata", "title"):
        for element in wanted.findall(tag):
            wanted.remove(element)
    assert ET.tostring(twin) == ET.tostring(wanted)


def test_no_agent_takes_the_twin_for_a_guest_of_remuda() -> None:
    text = twin_xml(of_remuda(GUEST, "instances"), of=GUEST.uid, names=TWIN)
    assert domain_xml.parse(text).stamp is None
    assert GUEST.uid not in text


def test_the_twins_config_drive_gives_it_an_address_of_its_own() -> None:
    text = f'{{"mac": "{GUEST.mac}", "ip_address": "{GUEST.address}", "uuid": "{GUEST.uid}", "mask": "x"}}'
    changed = twin_drive(text, guest=GUEST, twin=TWIN)
    assert (
        changed
        == f'{{"mac": "{TWIN.mac}", "ip_address": "{TWIN.address}", "uuid": "{TWIN.uid}", "mask": "x"}}'
    )

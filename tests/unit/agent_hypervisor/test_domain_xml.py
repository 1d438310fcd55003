"""The XML that guests are defined with, and what is read back out of libvirt's."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

from remuda_agent.hypervisor import METADATA_NAMESPACE, DomainDescription, DomainNic
from remuda_agent.hypervisor.libvirt.domain_xml import (
    Platform,
    Stamp,
    build,
    for_target,
    metadata_element,
    parse,
)
from remuda_core.ids import Epoch, InstanceId, OperationId

INSTANCE = InstanceId("7c8d5f3e-1111-4222-8333-944455556666")
TCG = Platform(domain_type="qemu", architecture="x86_64", emulator="/usr/bin/qemu-system-x86_64")
KVM = replace(TCG, domain_type="kvm")
GUEST = DomainDescription(
    instance_id=INSTANCE,
    title="projects/demo/instances/<web & co>",
    epoch=Epoch(3),
    operation_id=OperationId("op-1"),
    vcpus=2,
    memory_mib=512,
    disk=Path("/pool/instances/x/disk.qcow2"),
    config_drive=Path("/pool/instances/x/config.img"),
    console=Path("/var/log/x.console"),
    nics=(
        DomainNic(mac_address="52:54:00:00:00:01", bridge="br0"),
        DomainNic(mac_address="52:54:00:00:00:02", bridge="br1", mtu=1400),
    ),
)


def read(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 -- our own words


def test_what_is_built_is_read_back() -> None:
    parsed = parse(build(replace(GUEST, machine_type="pc-q35-7.2"), TCG))
    assert parsed.stamp == Stamp(instance_id=INSTANCE, epoch=Epoch(3), operation_id=OperationId("op-1"))
    assert parsed.machine_type == "pc-q35-7.2"
    assert parsed.writable_disks == ("vda", "vdb")


def test_the_config_drive_is_a_writable_virtio_disk_because_others_are_not_copied() -> None:
    domain = read(build(GUEST, TCG))
    disk, drive = domain.findall("devices/disk")
    assert drive.find("readonly") is None
    assert [one.find("target").get("bus") for one in (disk, drive)] == ["virtio", "virtio"]  # type: ignore[union-attr]
    assert [one.find("driver").get("type") for one in (disk, drive)] == ["qcow2", "raw"]  # type: ignore[union-attr]
    assert {one.find("driver").get("cache") for one in (disk, drive)} == {"none"}  # type: ignore[union-attr]


def test_tcg_guests_get_a_named_cpu_and_a_small_code_cache() -> None:
    domain = read(build(GUEST, TCG))
    assert domain.findtext("cpu/model") == "qemu64"
    assert domain.findtext("features/tcg/tb-cache") == "32"
    assert domain.get("type") == "qemu"


def test_kvm_guests_get_the_hosts_cpu_model() -> None:
    domain = read(build(GUEST, KVM))
    cpu = domain.find("cpu")
    assert cpu is not None
    assert cpu.get("mode") == "host-model"
    assert domain.find("features/tcg") is None


def test_ports_are_bridged_in_order_and_never_use_vhost() -> None:
    nics = read(build(GUEST, TCG)).findall("devices/interface")
    assert [nic.find("source").get("bridge") for nic in nics] == ["br0", "br1"]  # type: ignore[union-attr]
    assert [nic.find("driver").get("name") for nic in nics] == ["qemu", "qemu"]  # type: ignore[union-attr]
    assert nics[0].find("mtu") is None
    assert nics[1].find("mtu").get("size") == "1400"  # type: ignore[union-attr]


def test_the_console_is_appended_to() -> None:
    source = read(build(GUEST, TCG)).find("devices/serial/source")
    assert source is not None
    assert source.attrib == {"path": "/var/log/x.console", "append": "on"}


def test_text_from_people_is_escaped() -> None:
    assert read(build(GUEST, TCG)).findtext("title") == GUEST.title
    assert "<web" not in build(GUEST, TCG)


def test_a_target_without_bridges_of_its_own_changes_the_metadata_and_nothing_else() -> None:
    new = Stamp(instance_id=INSTANCE, epoch=Epoch(4), operation_id=OperationId("op-2"))
    before = build(GUEST, TCG)
    after = for_target(before, new, {})
    assert parse(after).stamp == new
    old = parse(before).stamp
    assert old is not None
    assert for_target(after, old, {}) == before


def test_interfaces_are_plugged_into_the_targets_bridges_and_nothing_else_is() -> None:
    before = build(GUEST, TCG)
    stamp = parse(before).stamp
    assert stamp is not None
    named = for_target(before, stamp, {"52:54:00:00:00:02": "vmbr7", "52:54:00:00:00:99": "other"})
    sources = [one.get("bridge") for one in read(named).findall("devices/interface/source")]
    assert sources == ["br0", "vmbr7"]
    assert for_target(named, stamp, {"52:54:00:00:00:02": "br1"}) == before
    upper = before.replace("52:54:00:00:00:01", "52:54:00:00:00:AB")
    plugged = read(for_target(upper, stamp, {"52:54:00:00:00:ab": "vmbr8"}))
    assert [one.get("bridge") for one in plugged.findall("devices/interface/source")] == ["vmbr8", "br1"]


def test_a_domain_without_metadata_can_be_stamped_and_keeps_what_others_wrote() -> None:
    new = Stamp(instance_id=INSTANCE, epoch=Epoch(4), operation_id=OperationId("op-2"))
    foreign = "<metadata><a:b xmlns:a='urn:a'/></metadata>"
    assert parse(for_target("<domain/>", new, {})).stamp == new
    kept = for_target(f"<domain>{foreign}</domain>", new, {})
    assert parse(kept).stamp == new
    assert read(kept).find("metadata/{urn:a}b") is not None


def test_a_domain_of_somebody_else_has_no_stamp() -> None:
    assert parse("<domain><name>other</name></domain>").stamp is None
    damaged = f"<metadata><r:instance xmlns:r='{METADATA_NAMESPACE}' id='x' epoch='-1'/></metadata>"
    assert parse(f"<domain>{damaged}</domain>").stamp is None


def test_readonly_and_shareable_disks_and_cdroms_are_not_copied() -> None:
    text = """<domain><devices>
      <disk type='file' device='disk'><target dev='vda'/></disk>
      <disk type='file' device='disk'><target dev='vdb'/><readonly/></disk>
      <disk type='file' device='disk'><target dev='vdc'/><shareable/></disk>
      <disk type='file' device='cdrom'><target dev='sda'/></disk>
    </devices></domain>"""
    assert parse(text).writable_disks == ("vda",)


def test_the_metadata_element_has_no_namespace_of_its_own() -> None:
    """libvirt puts it into the namespace that the call names."""
    text = metadata_element(Stamp(instance_id=INSTANCE, epoch=Epoch(4), operation_id=OperationId("op-2")))
    assert read(text).tag == "instance"

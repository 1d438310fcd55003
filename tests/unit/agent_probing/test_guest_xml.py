"""Domain XML, read for preflight."""

import pytest
from remuda_agent.hypervisor.libvirt.guest_xml import disk_targets, parse_guest
from remuda_agent.hypervisor.libvirt.preflight import dirty_rate

LIVE = """
<domain type='qemu' id='3'>
  <memory unit='KiB'>98304</memory>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <cpu mode='custom' match='exact' check='full'><model fallback='forbid'>qemu64</model></cpu>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/p/instances/i/disk.qcow2'/>
      <backingStore type='file'><source file='/p/base/b.raw'/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/><source file='/p/instances/i/config.iso'/>
      <target dev='sda' bus='sata'/><readonly/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>
    %s
  </devices>
</domain>
"""


def facts(devices: str = "") -> tuple[str, ...]:
    return parse_guest(LIVE % devices, capacities={}, dirty_bytes_per_second=None).host_devices


def test_disks_come_in_order_with_what_libvirt_would_not_copy() -> None:
    guest = parse_guest(LIVE % "", capacities={"vda": 10, "sda": 3}, dirty_bytes_per_second=7)
    assert [(disk.target, disk.device, disk.bus, disk.readonly, disk.format) for disk in guest.disks] == [
        ("vda", "disk", "virtio", False, "qcow2"),
        ("sda", "cdrom", "sata", True, "raw"),
        ("sdb", "cdrom", "sata", True, ""),
    ]
    assert [disk.source for disk in guest.disks] == [
        "/p/instances/i/disk.qcow2",
        "/p/instances/i/config.iso",
        "",
    ]
    assert [disk.capacity_bytes for disk in guest.disks] == [10, 3, 0]
    assert disk_targets(LIVE % "") == ["vda", "sda"]
    assert (guest.memory_bytes, guest.dirty_bytes_per_second) == (96 << 20, 7)
    assert (guest.domain_type, guest.architecture, guest.machine_type) == ("qemu", "x86_64", "pc-q35-7.2")
    assert guest.cpu_xml.startswith("<cpu ")
    assert guest.cpu_xml.endswith("</cpu>")


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        ("<interface type='bridge'><source bridge='br0'/></interface>", ()),
        (
            "<hostdev mode='subsystem' type='pci'><source>"
            "<address domain='0x0000' bus='0x3b' slot='0x02' function='0x1'/></source></hostdev>",
            ("hostdev pci 0000:3b:02.1",),
        ),
        (
            "<hostdev mode='subsystem' type='usb'><source><address bus='1' device='12'/></source></hostdev>",
            ("hostdev usb 001:012",),
        ),
        (
            "<hostdev mode='subsystem' type='mdev'><source><address uuid='c2'/></source></hostdev>",
            ("hostdev mdev c2",),
        ),
        ("<interface type='direct'><source dev='eth0'/></interface>", ("interface direct eth0",)),
        (
            "<filesystem type='mount'><source dir='/x'/><target dir='tag'/></filesystem>",
            ("filesystem mount tag",),
        ),
        ("<tpm model='tpm-tis'><backend type='passthrough'/></tpm>", ("tpm passthrough",)),
        ("<tpm model='tpm-tis'><backend type='emulator'/></tpm>", ()),
        ("<input type='evdev'><source dev='/dev/input/event1'/></input>", ("input evdev",)),
        ("<input type='keyboard' bus='ps2'/>", ()),
        ("<shmem name='m'><size unit='M'>4</size></shmem>", ("shmem m",)),
    ],
)
def test_whatever_ties_a_guest_to_its_host_is_named(devices: str, told: tuple[str, ...]) -> None:
    assert facts(devices) == told


@pytest.mark.parametrize(
    ("stats", "rate"),
    [
        ({}, None),
        ({"dirtyrate.calc_status": 0}, None),
        ({"dirtyrate.calc_status": 1, "dirtyrate.megabytes_per_second": 9}, None),
        ({"dirtyrate.calc_status": 2, "dirtyrate.megabytes_per_second": 9}, 9 << 20),
        ({"dirtyrate.calc_status": 2, "dirtyrate.megabytes_per_second": 0}, 0),
    ],
)
def test_a_dirty_rate_is_known_once_it_was_measured(stats: dict[str, int], rate: int | None) -> None:
    assert dirty_rate(stats) == rate

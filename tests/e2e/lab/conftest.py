"""Raw guests: domains made with virsh, so that the lab is proven without any service of Remuda."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from remuda_lab.commands import run
from remuda_lab.guest import ConfigDrive, GuestImage, Nic, write_config_drive
from remuda_lab.guest_view import GuestView
from remuda_lab.host import Host
from remuda_lab.lab import Lab
from remuda_lab.layout import SHARED_POOL
from remuda_lab.testing import bare_lab, guest_image

__all__ = ["bare_lab", "guest_image"]

DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>96</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
      <source file='{pool}/{name}/disk.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>
      <source file='{pool}/{name}/config.img'/><target dev='vdb' bus='virtio'/></disk>
    <interface type='bridge'><mac address='{mac}'/><source bridge='br0'/><model type='virtio'/></interface>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <serial type='file'><source path='/var/log/libvirt/qemu/{name}-console.log' append='on'/></serial>
    <controller type='usb' model='none'/><memballoon model='virtio'/>
  </devices>
</domain>
"""


@dataclass(frozen=True, kw_only=True)
class RawGuest:
    lab: Lab
    image: GuestImage
    name: str
    uuid: str
    mac: str
    address: IPv4Address
    pool: str

    @property
    def view(self) -> GuestView:
        return GuestView(init=self.lab.fabric().init, address=self.address)

    @property
    def xml(self) -> str:
        return DOMAIN.format(name=self.name, uuid=self.uuid, mac=self.mac, pool=self.pool)

    def files(self, host: str) -> Path:
        """The guest's directory on a host, seen from the machine."""
        if self.pool == SHARED_POOL:
            return self.lab.paths.shared_pool / self.name
        return self.lab.paths.host(host).local_pool / self.name

    def make_disks(self, host: str) -> None:
        """Base image and overlay, and an empty file as large as the config drive will be."""
        files = self.files(host)
        files.mkdir(parents=True)
        run(["cp", "--sparse=always", str(self.image.qcow2), str(files / "base.qcow2")])
        run(
            [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "qcow2",
                "-b",
                "base.qcow2",
                str(files / "disk.qcow2"),
            ]
        )
        with (files / "config.img").open("wb") as config:
            config.truncate(8 * 1024 * 1024)

    def write_config(self, host: str) -> None:
        nic = Nic(mac=self.mac, address=IPv4Interface(f"{self.address}/24"))
        drive = ConfigDrive(uuid=self.uuid, hostname=self.name, nics=(nic,), user_data="#!/bin/sh\nexit 7\n")
        write_config_drive(self.files(host) / "config.img", drive)

    def start(self, host: Host) -> None:
        definition = self.files(host.plan.name) / "domain.xml"
        definition.write_text(self.xml)
        host.virsh("define", f"{self.pool}/{self.name}/domain.xml")
        host.virsh("start", self.name)


@pytest.fixture
def raw_guest(bare_lab: Lab, guest_image: GuestImage) -> Iterator[Callable[[str, str], RawGuest]]:
    """``raw_guest(host, pool)`` launches a guest and waits until it answers; it is destroyed afterwards."""
    launched: list[RawGuest] = []

    def launch(host: str, pool: str) -> RawGuest:
        identity = uuid.uuid4()
        number = 50 + identity.int % 200
        guest = RawGuest(
            lab=bare_lab,
            image=guest_image,
            name=f"guest-{identity.hex[:8]}",
            uuid=str(identity),
            mac="52:54:00:" + ":".join(identity.hex[n : n + 2] for n in (0, 2, 4)),
            address=IPv4Address(f"10.78.0.{number}"),
            pool=pool,
        )
        launched.append(guest)
        guest.make_disks(host)
        guest.write_config(host)
        guest.start(bare_lab.host(host))
        guest.view.wait_up()
        return guest

    yield launch
    for guest in launched:
        for name in bare_lab.running_hosts():
            host = bare_lab.host(name)
            if guest.name in host.virsh("list", "--all", "--name").split():
                if guest.name in host.virsh("list", "--name").split():
                    host.virsh("destroy", guest.name)
                host.virsh("undefine", guest.name)

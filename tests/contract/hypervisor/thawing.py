"""A guest that has booted once in the lab, and begins again from that moment: a boot takes ten seconds."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import libvirt
from remuda_agent.hypervisor import DomainDescription
from remuda_lab.lab import Lab

HOST = "host1"


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Its memory and its files, all of one moment."""

    guest: DomainDescription
    address: IPv4Address
    directory: Path

    def put_back(self, lab: Lab, files: Path) -> None:
        """`files`: its directory on the host, as the machine sees it. A start goes on from there."""
        for name in (self.guest.disk.name, self.guest.config_drive.name):
            shutil.copyfile(self.directory / name, files / name)
        # libvirt removes its name for it when the guest runs.
        os.link(self.directory / "memory", _memory(lab, self.guest))


async def freeze(lab: Lab, guest: DomainDescription, address: IPv4Address, files: Path) -> Frozen:
    """The running guest goes off; `put_back` and a start let it go on, as often as wanted."""
    directory = lab.paths.root / "frozen" / guest.instance_id
    frozen = Frozen(guest=guest, address=address, directory=directory)

    def work() -> None:
        connection = libvirt.open(lab.host(HOST).libvirt_uri)
        try:
            connection.lookupByUUIDString(guest.instance_id).managedSave(0)
        finally:
            connection.close()
        directory.mkdir(parents=True)
        os.link(_memory(lab, guest), directory / "memory")
        _memory(lab, guest).unlink()
        for name in (guest.disk.name, guest.config_drive.name):
            shutil.copyfile(files / name, directory / name)

    await asyncio.to_thread(work)
    return frozen


def _memory(lab: Lab, guest: DomainDescription) -> Path:
    """Where libvirt looks for what it has saved of a guest."""
    return lab.paths.host(HOST).var / "lib/libvirt/qemu/save" / f"{guest.instance_id}.save"

"""A guest beside one of Remuda's: the same machine, image, memory and disks, under its own names, defined by
hand. virsh moves it; nobody could move Remuda's own guest behind its back without upsetting it.
"""

from __future__ import annotations

import json
import shutil
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from remuda_lab.commands import find, run
from remuda_lab.guest_view import GuestView
from remuda_lab.layout import GUESTS, LOCAL_POOL, SHARED_POOL
from remuda_lab.mesh import Guest, Mesh

from remuda_bench.migration.plan import Kind

ADDRESS = GUESTS.network_address + 240
"""Outside of what Remuda gives to guests."""
_DRIVE_FILES = ("openstack/latest/meta_data.json", "openstack/latest/network_data.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What tells two guests apart."""

    uid: str
    mac: str
    address: str

    @classmethod
    def new(cls, number: int = 0) -> Names:
        """``number``: 0 to 9, one for each that runs at a time."""
        identity = uuid.uuid4()
        tail = ":".join(identity.hex[n : n + 2] for n in (0, 2, 4))
        return cls(uid=str(identity), mac=f"52:54:00:{tail}", address=str(ADDRESS + number))


def twin_xml(text: str, *, of: str, names: Names) -> str:
    """The definition of the guest ``of`` for its twin. Pure. Paths hold the instance's id, and so does the
    twin's its own; without Remuda's metadata no agent takes it for one of its guests.
    """
    domain = ET.fromstring(text)  # noqa: S314 -- libvirtd's own words
    for tag in ("metadata", "title"):
        for element in domain.findall(tag):
            domain.remove(element)
    for interface in domain.findall("devices/interface/mac"):
        interface.set("address", names.mac)
    text = ET.tostring(domain, encoding="unicode").replace(f"/instances/{of}/", f"/bench/{names.uid}/")
    return text.replace(of, names.uid)


def twin_drive(text: str, *, guest: Names, twin: Names) -> str:
    """A document of the config drive for the twin. Pure."""
    for old, new in ((guest.uid, twin.uid), (guest.mac, twin.mac), (guest.address, twin.address)):
        text = text.replace(old, new)
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """``size_bytes``: of the disk, as the guest sees it; ``base``: its backing file, as a host sees it."""

    mesh: Mesh
    kind: Kind
    names: Names
    base: str
    size_bytes: int
    drive_bytes: int

    @property
    def uid(self) -> str:
        return self.names.uid

    @property
    def view(self) -> GuestView:
        return GuestView(init=self.mesh.lab.fabric().init, address=IPv4Address(self.names.address))

    @property
    def inside(self) -> str:
        """Its directory, as a host sees it."""
        pool = LOCAL_POOL if self.kind is Kind.BLOCK else SHARED_POOL
        return f"{pool}/bench/{self.uid}"

    def files(self, host: str) -> Path:
        """Its directory, as the machine sees it."""
        return self.mesh.directory(host, "", self.kind.pool).parent / "bench" / self.uid

    def start(self, host: str, guest: Guest) -> None:
        """As a copy of ``guest``, which is on this host. Raises CommandFailed."""
        self.lay(host, guest)
        self.make_overlay(host)
        self.mesh.lab.host(host).virsh("define", f"{self.inside}/domain.xml")
        self.mesh.lab.host(host).virsh("start", self.uid)

    def lay(self, host: str, guest: Guest) -> None:
        """What is copied of ``guest``: its config drive, and its definition as domain.xml. Raises
        CommandFailed.
        """
        self.files(host).mkdir(parents=True)
        self._make_drive(host, guest)
        definition = self.mesh.lab.host(host).virsh("dumpxml", "--inactive", guest.uid)
        definition = twin_xml(definition, of=guest.uid, names=self.names)
        (self.files(host) / "domain.xml").write_text(definition)

    def expect_at(self, target: str) -> None:
        """Disks for a block migration, equal in size and empty. Raises CommandFailed."""
        if self.kind is Kind.SHARED:
            return
        self.files(target).mkdir(parents=True)
        self.make_overlay(target)
        with (self.files(target) / "config.img").open("wb") as drive:
            drive.truncate(self.drive_bytes)

    def forget_at(self, source: str) -> None:
        """What a move has left there: the definition, and the disks that were copied."""
        self.mesh.lab.host(source).virsh("undefine", self.uid)
        if self.kind is Kind.BLOCK:
            shutil.rmtree(self.files(source))

    def remove(self) -> None:
        """From wherever it is, alive or not. Raises CommandFailed."""
        for name in self.mesh.lab.running_hosts():
            state = self.mesh.domains(name).get(self.uid)
            if state not in (None, "shut off"):
                self.mesh.lab.host(name).virsh("destroy", self.uid)
            if state is not None:
                self.mesh.lab.host(name).virsh("undefine", self.uid)
            shutil.rmtree(self.files(name).parent, ignore_errors=True)

    def make_overlay(self, host: str) -> None:
        """Its disk, empty. Raises CommandFailed."""
        words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.base]
        self.mesh.lab.host(host).run([*words, f"{self.inside}/disk.qcow2", str(self.size_bytes)])

    def _make_drive(self, host: str, guest: Guest) -> None:
        mine, others = self.files(host) / "config.img", self.mesh.directory(host, guest.uid, self.kind.pool)
        run(["cp", "--sparse=always", str(others / "config.img"), str(mine)])
        known = Names(
            uid=guest.uid, mac=guest.record().network_interfaces[0].mac_address, address=str(guest.address)
        )
        for name in _DRIVE_FILES:
            text = run([str(find("mtype")), "-i", str(mine), f"::/{name}"])
            changed = twin_drive(text, guest=known, twin=self.names)
            run([str(find("mcopy")), "-o", "-i", str(mine), "-", f"::/{name}"], stdin=changed)


def make_twin(mesh: Mesh, guest: Guest, kind: Kind, *, host: str) -> Twin:
    """Of a guest of Remuda's that was just launched on ``host``; boots. Raises LabError."""
    twin = plan_twin(mesh, guest, kind, host=host, names=Names.new())
    twin.start(host, guest)
    return twin


def plan_twin(mesh: Mesh, guest: Guest, kind: Kind, *, host: str, names: Names) -> Twin:
    """Of a guest of Remuda's on ``host``; nothing of it is there yet. Raises LabError."""
    where = mesh.lab.host(host)
    pool = LOCAL_POOL if kind is Kind.BLOCK else SHARED_POOL
    info = json.loads(
        where.run(["qemu-img", "info", "-U", "--output=json", f"{pool}/instances/{guest.uid}/disk.qcow2"])
    )
    drive = mesh.directory(host, guest.uid, kind.pool) / "config.img"
    return Twin(
        mesh=mesh,
        kind=kind,
        names=names,
        base=info["backing-filename"],
        size_bytes=info["virtual-size"],
        drive_bytes=drive.stat().st_size,
    )

"""A guest that libvirt starts without Remuda: the same as one of Remuda's in all but its names."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import libvirt

from remuda_bench.migration.twin import Twin


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Its config drive and definition are laid. ``connection``: to the libvirt of ``host``, open already, as
    an agent's is.
    """

    twin: Twin
    host: str
    connection: libvirt.virConnect

    def start(self) -> None:
        """An overlay over the base image, define, start: no less can be done for a guest. Raises
        CommandFailed, libvirtError.
        """
        self.twin.make_overlay(self.host)
        definition = (self.twin.files(self.host) / "domain.xml").read_text()
        self.connection.defineXML(definition).create()

    def stop(self) -> None:
        """As before it was started; also where that failed in between."""
        for domain in self.connection.listAllDomains():
            if domain.UUIDString() == self.twin.uid:
                if domain.isActive():
                    domain.destroy()
                domain.undefine()
        (self.twin.files(self.host) / "disk.qcow2").unlink(missing_ok=True)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.twin.files(self.host))

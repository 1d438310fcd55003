"""What virConnectGetCapabilities says, as far as guests care. Pure. https://libvirt.org/formatcaps.html."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from remuda_agent.hypervisor.model import hypervisor_error

_FAMILY = "q35"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Machine types are canonical ones of the family that guests get, newest last."""

    architecture: str
    emulator: str
    machine_types: tuple[str, ...]
    default_machine_type: str


def parse_capabilities(text: str) -> HostFacts:
    """Raises HYPERVISOR_ERROR when the host cannot run guests of its own architecture."""
    root = ET.fromstring(text)  # noqa: S314 -- libvirtd's own words
    architecture = root.findtext("host/cpu/arch", "x86_64")
    guest = root.find(f"guest/arch[@name='{architecture}']")
    if guest is None:
        raise hypervisor_error(f"libvirt knows no emulator for {architecture} guests")
    machines = guest.findall("machine")
    canonical = {
        machine.text or ""
        for machine in machines
        if machine.get("canonical") is None and _FAMILY in (machine.text or "")
    }
    alias = next((machine for machine in machines if machine.text == _FAMILY), None)
    if alias is not None:
        canonical.add(alias.get("canonical", ""))
    canonical.discard("")
    if not canonical:
        raise hypervisor_error(f"{guest.findtext('emulator', 'QEMU')} has no {_FAMILY} machine")
    ordered = tuple(sorted(canonical, key=_version))
    return HostFacts(
        architecture=architecture,
        emulator=guest.findtext("emulator", ""),
        machine_types=ordered,
        default_machine_type=(alias.get("canonical") if alias is not None else None) or ordered[-1],
    )


def _version(machine: str) -> tuple[tuple[int, ...], str]:
    return tuple(int(number) for number in re.findall(r"\d+", machine)), machine

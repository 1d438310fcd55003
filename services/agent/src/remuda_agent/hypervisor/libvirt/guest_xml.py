"""What a guest is made of, read from its domain XML. Pure. Format: https://libvirt.org/formatdomain.html."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping

from remuda_agent.hypervisor.facts import GuestDisk, GuestFacts

_UNITS = {"": 1 << 10, "b": 1, "bytes": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SOURCES = ("file", "dev", "dir", "name", "volume")


def disk_targets(text: str) -> list[str]:
    """Targets (vda, ...) of the disks that have something in them."""
    domain = ET.fromstring(text)  # noqa: S314 -- libvirtd's own words
    return [_target(disk) for disk in domain.findall("devices/disk") if _source(disk)]


def parse_guest(
    text: str, *, capacities: Mapping[str, int], dirty_bytes_per_second: int | None
) -> GuestFacts:
    """``capacities``: bytes by target; targets that are missing get 0."""
    domain = ET.fromstring(text)  # noqa: S314 -- libvirtd's own words
    cpu = domain.find("cpu")
    kind = domain.find("os/type")
    return GuestFacts(
        cpu_xml="" if cpu is None else ET.tostring(cpu, encoding="unicode").strip(),
        machine_type="" if kind is None else kind.get("machine", ""),
        domain_type=domain.get("type", ""),
        architecture="" if kind is None else kind.get("arch", ""),
        disks=tuple(_disk(disk, capacities) for disk in domain.findall("devices/disk")),
        host_devices=tuple(_host_devices(domain)),
        memory_bytes=_memory(domain.find("memory")),
        dirty_bytes_per_second=dirty_bytes_per_second,
    )


def _disk(disk: ET.Element, capacities: Mapping[str, int]) -> GuestDisk:
    driver, target = disk.find("driver"), disk.find("target")
    name = _target(disk)
    return GuestDisk(
        target=name,
        device=disk.get("device", "disk"),
        bus="" if target is None else target.get("bus", ""),
        readonly=disk.find("readonly") is not None,
        format="" if driver is None else driver.get("type", ""),
        source=_source(disk),
        capacity_bytes=capacities.get(name, 0),
    )


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


def _source(disk: ET.Element) -> str:
    source = disk.find("source")
    if source is None:
        return ""
    return next((value for key in _SOURCES if (value := source.get(key))), "")


def _host_devices(domain: ET.Element) -> Iterator[str]:
    devices = domain.find("devices")
    for device in () if devices is None else devices:
        match device.tag, device.get("type", ""):
            case "hostdev", kind:
                yield " ".join(word for word in ("hostdev", kind, _address(device)) if word)
            case "interface", ("hostdev" | "direct" | "vdpa") as kind:
                yield " ".join(word for word in ("interface", kind, _address(device)) if word)
            case "disk", ("nvme" | "vhostvdpa") as kind:
                yield f"disk {kind} {_target(device)}"
            case "input", ("passthrough" | "evdev") as kind:
                yield f"input {kind}"
            case "filesystem", kind:
                target = device.find("target")
                directory = "" if target is None else target.get("dir", "")
                yield f"filesystem {kind or 'mount'} {directory}".strip()
            case "tpm", _ if device.find("backend[@type='passthrough']") is not None:
                yield "tpm passthrough"
            case "shmem", _:
                yield f"shmem {device.get('name', '')}".strip()


def _address(device: ET.Element) -> str:
    """As lspci and lsusb write it; empty where the definition names no address of the host's."""
    source = device.find("source")
    if source is None:
        return ""
    address = source.find("address")
    if address is None:
        return source.get("dev", "")
    given = {key: _number(address.get(key, "")) for key in ("domain", "bus", "slot", "function", "device")}
    if address.get("uuid"):
        return address.get("uuid", "")
    if address.get("slot") is not None:
        return f"{given['domain']:04x}:{given['bus']:02x}:{given['slot']:02x}.{given['function']:x}"
    return f"{given['bus']:03d}:{given['device']:03d}"


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0


def _memory(element: ET.Element | None) -> int:
    if element is None or not (element.text or "").strip().isdigit():
        return 0
    return int(element.text or "0") * _UNITS.get(element.get("unit", ""), 1 << 10)

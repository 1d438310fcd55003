"""Domain XML, both ways. Pure. Format: https://libvirt.org/formatdomain.html."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass

from remuda_core.ids import Epoch, InstanceId, OperationId

from remuda_agent.hypervisor.model import METADATA_NAMESPACE, DomainDescription, DomainNic

TCG_CPU_MODEL = "qemu64"
KVM_CPU_MODEL = "host-model"
TB_CACHE_MIB = 32
"""TCG's cache of translated code; QEMU's own choice takes more memory than a small guest."""

METADATA_PREFIX = "remuda"
_ELEMENT = f"{{{METADATA_NAMESPACE}}}instance"

ET.register_namespace(METADATA_PREFIX, METADATA_NAMESPACE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What a host gives to every guest. ``domain_type`` is kvm or qemu."""

    domain_type: str
    architecture: str
    emulator: str
    machine: str = "q35"
    """For guests that name none; libvirt makes it canonical when it defines the domain."""

    @property
    def cpu_model(self) -> str:
        return KVM_CPU_MODEL if self.domain_type == "kvm" else TCG_CPU_MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """The one metadata element of a domain."""

    instance_id: InstanceId
    epoch: Epoch
    operation_id: OperationId


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedDomain:
    """What is read out of a definition."""

    stamp: Stamp | None
    """None: not one of Remuda's."""
    machine_type: str
    writable_disks: tuple[str, ...]
    """Targets (vda, ...) of the disks that block migration has to copy."""


def build(description: DomainDescription, platform: Platform) -> str:
    """The definition of a guest on this host."""
    domain = ET.Element("domain", type=platform.domain_type)
    # Unique on every host, which the guest's own name is not.
    _add(domain, "name", description.instance_id)
    _add(domain, "uuid", description.instance_id)
    _add(domain, "title", description.title.replace("\n", " "))
    stamp = Stamp(
        instance_id=description.instance_id,
        epoch=description.epoch,
        operation_id=description.operation_id,
    )
    _add(domain, "metadata").append(_stamped(stamp))
    _add(domain, "memory", str(description.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(description.vcpus), placement="static")
    system = _add(domain, "os")
    _add(
        system,
        "type",
        "hvm",
        arch=platform.architecture,
        machine=description.machine_type or platform.machine,
    )
    _add(system, "boot", dev="hd")
    _add_features(domain, platform)
    _add_cpu(domain, platform)
    _add(domain, "clock", offset="utc")
    for moment, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _add(domain, f"on_{moment}", action)
    _add_devices(_add(domain, "devices"), description, platform)
    return ET.tostring(domain, encoding="unicode")


def parse(text: str) -> ParsedDomain:
    """A definition or live description as libvirt gives it."""
    domain = ET.fromstring(text)  # noqa: S314 -- libvirtd's own words
    kind = domain.find("os/type")
    disks = domain.findall("devices/disk[@device='disk']")
    return ParsedDomain(
        stamp=_read_stamp(domain.find(f"metadata/{_ELEMENT}")),
        machine_type="" if kind is None else kind.get("machine", ""),
        writable_disks=tuple(
            target.get("dev", "")
            for disk in disks
            if disk.find("readonly") is None
            and disk.find("shareable") is None
            and (target := disk.find("target")) is not None
        ),
    )


def for_target(text: str, stamp: Stamp, bridges: Mapping[str, str]) -> str:
    """The same domain for another host: how a migration's target is born with its own epoch, and plugged into
    that host's bridges. ``bridges``: by MAC address in lower case; other interfaces stay as they are.
    """
    domain = ET.fromstring(text)  # noqa: S314 -- libvirtd's own words
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = ET.Element("metadata")
        domain.insert(0, metadata)
    for old in metadata.findall(_ELEMENT):
        metadata.remove(old)
    metadata.append(_stamped(stamp))
    for interface in domain.findall("devices/interface[@type='bridge']"):
        mac, source = interface.find("mac"), interface.find("source")
        bridge = "" if mac is None else bridges.get(mac.get("address", "").lower(), "")
        if source is not None and bridge:
            source.set("bridge", bridge)
    return ET.tostring(domain, encoding="unicode")


def metadata_element(stamp: Stamp) -> str:
    """For virDomainSetMetadata, which adds the namespace itself."""
    return ET.tostring(ET.Element("instance", _attributes(stamp)), encoding="unicode")


def _add_features(domain: ET.Element, platform: Platform) -> None:
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if platform.domain_type == "qemu":
        _add(_add(features, "tcg"), "tb-cache", str(TB_CACHE_MIB), unit="MiB")


def _add_cpu(domain: ET.Element, platform: Platform) -> None:
    if platform.domain_type == "kvm":
        _add(domain, "cpu", mode="host-model", check="partial")
        return
    # TCG's host-model differs with QEMU's version; a named model moves between hosts.
    cpu = _add(domain, "cpu", mode="custom", match="exact", check="none")
    _add(cpu, "model", TCG_CPU_MODEL, fallback="forbid")


def _add_devices(devices: ET.Element, description: DomainDescription, platform: Platform) -> None:
    _add(devices, "emulator", platform.emulator)
    _add_disk(devices, str(description.disk), kind="qcow2", target="vda")
    # Virtio, because Debian's cloud kernel has no AHCI; not readonly, because libvirt does not copy those.
    _add_disk(devices, str(description.config_drive), kind="raw", target="vdb")
    for nic in description.nics:
        _add_nic(devices, nic)
    channel = _add(devices, "channel", type="unix")
    _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    serial = _add(devices, "serial", type="file")
    _add(serial, "source", path=str(description.console), append="on")
    _add(serial, "target", port="0")
    _add(devices, "controller", type="usb", model="none")
    _add(devices, "memballoon", model="virtio")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")


def _add_disk(devices: ET.Element, path: str, *, kind: str, target: str) -> None:
    disk = _add(devices, "disk", type="file", device="disk")
    _add(disk, "driver", name="qemu", type=kind, cache="none", discard="unmap")
    _add(disk, "source", file=path)
    _add(disk, "target", dev=target, bus="virtio")


def _add_nic(devices: ET.Element, nic: DomainNic) -> None:
    interface = _add(devices, "interface", type="bridge")
    _add(interface, "mac", address=nic.mac_address)
    _add(interface, "source", bridge=nic.bridge)
    _add(interface, "model", type="virtio")
    # In QEMU, not in the kernel: vhost is not everywhere, and a guest has to move everywhere.
    _add(interface, "driver", name="qemu")
    if nic.mtu:
        _add(interface, "mtu", size=str(nic.mtu))


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _attributes(stamp: Stamp) -> dict[str, str]:
    return {
        "id": stamp.instance_id,
        "epoch": str(stamp.epoch),
        "operation": stamp.operation_id,
    }


def _stamped(stamp: Stamp) -> ET.Element:
    return ET.Element(_ELEMENT, _attributes(stamp))


def _read_stamp(element: ET.Element | None) -> Stamp | None:
    if element is None:
        return None
    instance_id, epoch = element.get("id", ""), element.get("epoch", "")
    if not instance_id or not epoch.isdigit():
        return None
    return Stamp(
        instance_id=InstanceId(instance_id),
        epoch=Epoch(int(epoch)),
        operation_id=OperationId(element.get("operation", "")),
    )

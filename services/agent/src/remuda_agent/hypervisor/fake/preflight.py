"""What fake hosts answer to preflight: libvirt's answers, from what a test has set on hosts and domains."""

from __future__ import annotations

from pathlib import Path

from remuda_core.ids import InstanceId

from remuda_agent.hypervisor.facts import CpuComparison, CpuVerdict, GuestDisk, GuestFacts, check_peer
from remuda_agent.hypervisor.fake.world import MIB, FakeDomain, World
from remuda_agent.hypervisor.model import DomainDescription, HypervisorCapabilities, hypervisor_error


def describe(
    world: World, host: str, instance_id: InstanceId, *, capabilities: HypervisorCapabilities
) -> GuestFacts:
    """Raises DomainMissing."""
    domain = world.domain(host, instance_id)
    copy = domain.live or domain.definition
    assert copy is not None
    return GuestFacts(
        cpu_xml=f"<cpu mode='custom'><model>{capabilities.cpu_model}</model></cpu>",
        machine_type=copy.machine_type,
        domain_type=capabilities.domain_type,
        architecture=capabilities.architecture,
        disks=_disks(copy),
        host_devices=tuple(domain.host_devices),
        memory_bytes=copy.memory_mib * MIB,
        dirty_bytes_per_second=domain.dirty_bytes_per_second if domain.dirty_rate_measured else None,
    )


def compare_cpu(
    world: World, host: str, guest: GuestFacts, capabilities: HypervisorCapabilities
) -> CpuVerdict:
    """Incompatible when a test took features away from the host, or the guest is of another architecture."""
    if guest.architecture and guest.architecture != capabilities.architecture:
        return CpuVerdict(
            comparison=CpuComparison.INCOMPATIBLE,
            detail=f"the guest is {guest.architecture}, this host gives {capabilities.architecture}",
        )
    if missing := world.host(host).cpu_missing_features:
        return CpuVerdict(
            comparison=CpuComparison.INCOMPATIBLE,
            detail=f"Host CPU does not provide required features: {', '.join(missing)}",
        )
    return CpuVerdict(comparison=CpuComparison.SUPERSET)


def open_peer(world: World, host: str, hostname: str, *, transport: str) -> str:
    """The peer's host name. Raises what libvirt would, or says "" where it would hang."""
    check_peer(hostname, transport)
    peer = world.hosts.get(hostname)
    if peer is None:
        raise hypervisor_error(f"unable to connect to server at '{hostname}': Name or service not known")
    if not peer.up or peer.cut or world.host(host).cut:
        return ""
    if not peer.libvirt_listens:
        raise hypervisor_error(f"unable to connect to server at '{hostname}': Connection refused")
    return peer.name


def begin_measuring(world: World, host: str, instance_id: InstanceId) -> None:
    """Raises DomainMissing; HYPERVISOR_ERROR for a guest that is off."""
    if world.domain(host, instance_id).live is None:
        raise hypervisor_error("Requested operation is not valid: domain is not running")


def end_measuring(world: World, host: str, instance_id: InstanceId) -> int:
    """Bytes per second, kept for `describe`. Raises as `begin_measuring`."""
    begin_measuring(world, host, instance_id)
    domain: FakeDomain = world.domain(host, instance_id)
    domain.dirty_rate_measured = True
    return domain.dirty_bytes_per_second


def _disks(copy: DomainDescription) -> tuple[GuestDisk, ...]:
    # An ISO is what older guests have: it tells how a drive that libvirt would not copy is treated.
    iso = copy.config_drive.suffix == ".iso"
    return (
        _disk(copy.disk, target="vda", image="qcow2"),
        _disk(
            copy.config_drive,
            target="sda" if iso else "vdb",
            image="raw",
            device="cdrom" if iso else "disk",
            bus="sata" if iso else "virtio",
            readonly=iso,
        ),
    )


def _disk(
    path: Path, *, target: str, image: str, device: str = "disk", bus: str = "virtio", readonly: bool = False
) -> GuestDisk:
    return GuestDisk(
        target=target,
        device=device,
        bus=bus,
        readonly=readonly,
        format=image,
        source=str(path),
        capacity_bytes=path.stat().st_size if path.is_file() else 0,
    )

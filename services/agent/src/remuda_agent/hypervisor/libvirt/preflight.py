"""Preflight's questions to the local libvirtd, all blocking; they run in threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import libvirt
from remuda_core.ids import InstanceId

from remuda_agent.hypervisor.facts import CpuComparison, CpuVerdict, GuestFacts
from remuda_agent.hypervisor.libvirt.domain_calls import find
from remuda_agent.hypervisor.libvirt.guest_xml import disk_targets, parse_guest
from remuda_agent.hypervisor.libvirt.host_facts import HostFacts
from remuda_agent.hypervisor.model import DomainMissing

T = TypeVar("T")

_MIB = 1 << 20
_COMPARISONS = {
    libvirt.VIR_CPU_COMPARE_IDENTICAL: CpuComparison.IDENTICAL,
    libvirt.VIR_CPU_COMPARE_SUPERSET: CpuComparison.SUPERSET,
    libvirt.VIR_CPU_COMPARE_INCOMPATIBLE: CpuComparison.INCOMPATIBLE,
}


def describe(connection: Any, instance_id: InstanceId) -> GuestFacts:
    def look(domain: Any) -> GuestFacts:
        active = bool(domain.isActive())
        # The running copy's CPU is expanded already; a definition's host-model is not.
        text = domain.XMLDesc(0 if active else libvirt.VIR_DOMAIN_XML_UPDATE_CPU)
        return parse_guest(
            text,
            capacities={target: _capacity(domain, target) for target in disk_targets(text)},
            dirty_bytes_per_second=_dirty_rate(connection, domain) if active else None,
        )

    return _with(connection, instance_id, look)


def compare_cpu(connection: Any, guest: GuestFacts, host: HostFacts, *, domain_type: str) -> CpuVerdict:
    """compareHypervisorCPU with the domain type that guests get here. compareCPU asks about the physical
    processor: below TCG it calls every guest CPU incompatible, even the one it runs.
    """
    if guest.architecture and guest.architecture != host.architecture:
        return CpuVerdict(
            comparison=CpuComparison.INCOMPATIBLE,
            detail=f"the guest is {guest.architecture}, this host gives {host.architecture}",
        )
    if not guest.cpu_xml:
        return CpuVerdict(comparison=CpuComparison.SUPERSET, detail="the guest names no CPU")
    # A machine type that is not offered here is told apart by who asks; it must not hide the CPU's answer.
    machine = guest.machine_type if guest.machine_type in host.machine_types else None
    try:
        found = connection.compareHypervisorCPU(
            host.emulator,
            host.architecture,
            machine,
            domain_type,
            guest.cpu_xml,
            libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            raise
        return CpuVerdict(comparison=CpuComparison.INCOMPATIBLE, detail=error.get_error_message() or "")
    return CpuVerdict(comparison=_COMPARISONS[found])


def start_measuring(connection: Any, instance_id: InstanceId, seconds: int) -> None:
    """QEMU measures by itself from now on; raises libvirtError when it does so already."""
    _with(connection, instance_id, lambda domain: domain.startDirtyRateCalc(seconds, 0))


def measured(connection: Any, instance_id: InstanceId) -> int | None:
    """Bytes per second; None: not measured, or measuring now."""
    return _with(connection, instance_id, lambda domain: _dirty_rate(connection, domain))


def _dirty_rate(connection: Any, domain: Any) -> int | None:
    [(_, stats)] = connection.domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_DIRTYRATE, 0)
    return dirty_rate(stats)


def dirty_rate(stats: Mapping[str, Any]) -> int | None:
    """Of the group VIR_DOMAIN_STATS_DIRTYRATE."""
    if stats.get("dirtyrate.calc_status") != libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED:
        return None
    return int(stats.get("dirtyrate.megabytes_per_second", 0)) * _MIB


def _capacity(domain: Any, target: str) -> int:
    try:
        return int(domain.blockInfo(target)[0])
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise
        # An empty drive, a file that is gone, a device that vanished just now: what is left is worth telling.
        return 0


def _with(connection: Any, instance_id: InstanceId, look: Callable[[Any], T]) -> T:
    """A domain can go away between any two calls."""
    domain = find(connection, instance_id)
    try:
        return look(domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise DomainMissing(instance_id) from error
        raise

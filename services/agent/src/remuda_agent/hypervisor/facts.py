"""What preflight asks of a hypervisor: reads, and small experiments that leave nothing behind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from remuda_core.errors import invalid_argument
from remuda_core.ids import InstanceId

TRANSPORTS = ("tls", "tcp")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDisk:
    """One disk of a definition. ``source`` is a path, empty for a drive with nothing in it."""

    target: str
    device: str
    """disk or cdrom."""
    bus: str
    readonly: bool
    """Said by the definition; libvirt does not copy it then."""
    format: str
    source: str
    capacity_bytes: int
    """What the guest sees; 0: the hypervisor could not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFacts:
    """What a guest is made of: of its running copy, of its definition when it is off."""

    cpu_xml: str
    """The `<cpu>` element, expanded for the running QEMU; empty: the definition names none."""
    machine_type: str
    domain_type: str
    architecture: str
    disks: tuple[GuestDisk, ...]
    host_devices: tuple[str, ...]
    """What ties the guest to its host: kind and address, for example "hostdev pci 0000:00:02.0"."""
    memory_bytes: int
    dirty_bytes_per_second: int | None
    """Measured last, by this QEMU; None: never."""


class CpuComparison(StrEnum):
    """Names without the prefix of remuda.agent.v1.AssessGuestResponse.Cpu."""

    IDENTICAL = "IDENTICAL"
    SUPERSET = "SUPERSET"
    INCOMPATIBLE = "INCOMPATIBLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuVerdict:
    """The hypervisor's CPU against a guest's. ``detail`` says what is missing, in the hypervisor's words."""

    comparison: CpuComparison
    detail: str = ""


class Probes(Protocol):
    """The part of `Hypervisor` that preflight uses. Errors as there."""

    async def describe_guest(self, instance_id: InstanceId) -> GuestFacts:
        """Raises DomainMissing."""

    async def compare_cpu(self, guest: GuestFacts) -> CpuVerdict:
        """Whether this host's hypervisor, not its bare processor, can give what the guest uses."""

    async def open_peer(self, hostname: str, *, transport: str, patience: float) -> str:
        """Open the libvirt of another host as a migration would, ask its host name, and close it.

        Raises INVALID_ARGUMENT for a name or transport that is none, HYPERVISOR_ERROR with libvirt's words,
        or when there was no answer within ``patience`` seconds.
        """

    async def measure_dirty_rate(self, instance_id: InstanceId, *, seconds: int) -> int:
        """Bytes per second that the running guest writes to, sampled for so long. Raises DomainMissing.

        QEMU samples pages by their content, so writing the same again is not seen; and it counts in MiB.
        """


def check_peer(hostname: str, transport: str) -> None:
    """Both become part of a URI, whose parameters could name a socket or a command of this host.

    Raises INVALID_ARGUMENT.
    """
    if not _HOSTNAME.match(hostname):
        raise invalid_argument("hostname", f"{hostname!r} is no host name")
    if transport not in TRANSPORTS:
        raise invalid_argument("transport", f"{transport!r} is neither tls nor tcp")

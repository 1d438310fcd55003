"""What the agent says to a hypervisor and hears from it, without libvirt's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, InstanceId, OperationId

METADATA_NAMESPACE = "https://remuda.dev/ns/instance/1"
"""XML namespace of the one metadata element that every domain of Remuda carries."""


class PowerState(StrEnum):
    """Names without the prefix of remuda.compute.v1.Instance.PowerState; no domain at all is ``None``."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SHUTOFF = "SHUTOFF"
    CRASHED = "CRASHED"


class DomainJob(StrEnum):
    """Names without the prefix of remuda.scheduler.v1.ObservedInstance.Job; NONE is its zero."""

    NONE = "NONE"
    MIGRATION_OUT = "MIGRATION_OUT"
    MIGRATION_IN = "MIGRATION_IN"
    OTHER = "OTHER"


class EventKind(StrEnum):
    """What happened. Events are hints to look, never the truth: some are lost when libvirtd restarts."""

    RELIST = "RELIST"
    """Events were lost, or none came yet: list everything again."""
    DEFINED = "DEFINED"
    UNDEFINED = "UNDEFINED"
    STARTED = "STARTED"
    SUSPENDED = "SUSPENDED"
    RESUMED = "RESUMED"
    STOPPED = "STOPPED"
    SHUTDOWN = "SHUTDOWN"
    """The guest has powered itself off; STOPPED follows."""
    CRASHED = "CRASHED"
    MIGRATION_ITERATION = "MIGRATION_ITERATION"
    """``detail`` is the number of the pass over memory that begins."""
    JOB_ENDED = "JOB_ENDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainNic:
    """A port as the host sees it. ``mtu`` 0: the bridge's."""

    mac_address: str
    bridge: str
    mtu: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDescription:
    """Everything a hypervisor needs to define a guest; files exist already, except the console's."""

    instance_id: InstanceId
    title: str
    """For people who look with virsh: the instance's resource name."""
    epoch: Epoch
    operation_id: OperationId
    vcpus: int
    memory_mib: int
    disk: Path
    """qcow2 overlay, seen by the guest as vda."""
    config_drive: Path
    """Raw vfat image, seen by the guest as vdb."""
    console: Path
    """The serial port's output is appended here. Its directory exists on both hosts of a migration."""
    nics: tuple[DomainNic, ...] = ()
    machine_type: str = ""
    """Canonical, for example pc-q35-7.2; empty: the driver's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainView:
    """One domain as the hypervisor shows it now. Domains without Remuda's metadata are never shown."""

    instance_id: InstanceId
    epoch: Epoch
    """Of the running copy, else of the definition."""
    operation_id: OperationId
    """The operation that made this copy."""
    power_state: PowerState
    reason: str
    """libvirt's word in lower case: booted, migrated, migration, crashed, postcopy, postcopy_failed, ...

    One total table (libvirt/states.py) makes it; the fake gives the same words.
    """
    job: DomainJob
    persistent: bool
    """There is a definition that outlives the running copy."""
    machine_type: str
    """Canonical."""
    definition_epoch: Epoch | None = None
    """Epoch in the persistent definition; None: not persistent."""

    @property
    def active(self) -> bool:
        """There is a QEMU for it."""
        return self.power_state in (PowerState.RUNNING, PowerState.PAUSED)

    @property
    def postcopy(self) -> bool:
        """Its memory is, or was left, split over two hosts: never resume, start or destroy it blindly."""
        return self.reason in ("postcopy", "postcopy_failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorCapabilities:
    """What a host can give to guests."""

    driver: str
    """libvirt or fake."""
    vcpus: int
    memory_mib: int
    domain_type: str
    """kvm, where a throw-away guest really ran, else qemu (TCG)."""
    domain_type_reason: str
    """A sentence for a person: why this domain type."""
    architecture: str
    cpu_model: str
    """Given to guests."""
    libvirt_version: int
    """virConnectGetLibVersion: 9000000 is 9.0.0."""
    qemu_version: int
    """virConnectGetVersion: 7002022 is 7.2.22."""
    machine_types: tuple[str, ...]
    """Canonical ones, newest last."""
    default_machine_type: str
    """Canonical; for new guests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationRequest:
    """One live migration away from this host. Fields as in remuda.agent.v1.StartMigration."""

    instance_id: InstanceId
    operation_id: OperationId
    """Written into the target's copy, with target_epoch."""
    target_epoch: Epoch
    target_hostname: str
    """As in the target's certificate; libvirt connects to it."""
    target_address: str = ""
    """Memory and disks are sent here; empty: libvirt's choice."""
    transport: str = "tls"
    """tls or tcp, for libvirt's connection, memory and disks alike."""
    shared_disks: bool = False
    """The caller has proven that both hosts see the same files; else the disks are copied."""
    max_downtime_ms: int = 0
    """0: QEMU's default."""
    bandwidth_mib_s: int = 0
    """0: no cap."""
    auto_converge: bool = False
    allow_post_copy: bool = False
    """Fixed at the start: without it `start_post_copy` is refused. Post-copy keeps to the same cap."""
    bridges: Mapping[str, str] = field(default_factory=dict)
    """MAC address, lower case -> bridge of the target. A port that is not named keeps the source's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationJobStats:
    """A migration while it runs. Zero: the hypervisor has not said."""

    elapsed_ms: int = 0
    iteration: int = 0
    memory_total_bytes: int = 0
    memory_processed_bytes: int = 0
    """Sent so far; pages sent twice count twice."""
    memory_remaining_bytes: int = 0
    memory_bytes_per_second: int = 0
    dirty_bytes_per_second: int = 0
    disk_total_bytes: int = 0
    disk_processed_bytes: int = 0
    disk_remaining_bytes: int = 0
    disk_bytes_per_second: int = 0
    expected_downtime_ms: int = 0
    """QEMU's estimate of the pause; 0: none yet."""
    switching_over: bool = False
    """The guest stands still for its switch-over."""
    post_copy: bool = False
    """The guest runs at the target, or is about to; the rest of its memory is pulled."""

    @property
    def copying_disks(self) -> bool:
        """Disks are copied before memory: QEMU has sent no memory and there is disk left."""
        return self.memory_processed_bytes == 0 and self.disk_remaining_bytes > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletedMigration:
    """What was measured of a migration that ended well. None: unknown, which is never 0."""

    downtime_ms: int | None = None
    job_duration_ms: int | None = None
    memory_bytes: int = 0
    disk_bytes: int = 0
    iterations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorEvent:
    """A hint. ``instance_id`` is None only for RELIST."""

    kind: EventKind
    instance_id: InstanceId | None
    detail: str
    """libvirt's word in lower case: booted, migrated, migration, paused, ... Empty: none."""
    time: datetime
    """When it was heard, UTC."""


class DomainMissing(RemudaError):
    """The host has no domain of that instance."""

    def __init__(self, instance_id: InstanceId) -> None:
        super().__init__(
            Reason.HYPERVISOR_ERROR,
            f"the hypervisor has no domain {instance_id}",
            metadata={"instance": instance_id, "missing": "domain"},
        )
        self.instance_id = instance_id


def hypervisor_error(message: str, **metadata: str) -> RemudaError:
    """For what libvirt or QEMU refused; ``message`` holds their words."""
    return RemudaError(Reason.HYPERVISOR_ERROR, message, metadata=metadata)

"""Hypervisor drivers behind one interface."""

from remuda_agent.hypervisor.backups import BackupRequest, Guard
from remuda_agent.hypervisor.facts import CpuComparison, CpuVerdict, GuestDisk, GuestFacts
from remuda_agent.hypervisor.interface import Hypervisor
from remuda_agent.hypervisor.model import (
    METADATA_NAMESPACE,
    CompletedMigration,
    DomainDescription,
    DomainJob,
    DomainMissing,
    DomainNic,
    DomainView,
    EventKind,
    HypervisorCapabilities,
    HypervisorEvent,
    MigrationJobStats,
    MigrationRequest,
    PowerState,
    hypervisor_error,
)

__all__ = [
    "METADATA_NAMESPACE",
    "BackupRequest",
    "CompletedMigration",
    "CpuComparison",
    "CpuVerdict",
    "DomainDescription",
    "DomainJob",
    "DomainMissing",
    "DomainNic",
    "DomainView",
    "EventKind",
    "Guard",
    "GuestDisk",
    "GuestFacts",
    "Hypervisor",
    "HypervisorCapabilities",
    "HypervisorEvent",
    "MigrationJobStats",
    "MigrationRequest",
    "PowerState",
    "hypervisor_error",
]

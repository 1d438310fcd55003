"""Conditions, one per file, in the order of the table. Each is a pure function of Facts."""

from collections.abc import Mapping

from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.conditions.capacity import capacity
from remuda_scheduler.preflight.conditions.config_drive import config_drive
from remuda_scheduler.preflight.conditions.convergence import convergence
from remuda_scheduler.preflight.conditions.cpu_compatible import cpu_compatible
from remuda_scheduler.preflight.conditions.devices import devices
from remuda_scheduler.preflight.conditions.group_policy import group_policy
from remuda_scheduler.preflight.conditions.hostname_resolution import hostname_resolution
from remuda_scheduler.preflight.conditions.libvirt_listening import libvirt_listening
from remuda_scheduler.preflight.conditions.libvirt_version import libvirt_version
from remuda_scheduler.preflight.conditions.migration_transport import migration_transport
from remuda_scheduler.preflight.conditions.network import network
from remuda_scheduler.preflight.conditions.storage import storage
from remuda_scheduler.preflight.conditions.target_available import target_available
from remuda_scheduler.preflight.rows import Condition

CONDITIONS: Mapping["MigrationCheck.Condition.ValueType", Condition] = {
    MigrationCheck.CONDITION_TARGET_AVAILABLE: target_available,
    MigrationCheck.CONDITION_CPU_COMPATIBLE: cpu_compatible,
    MigrationCheck.CONDITION_LIBVIRT_VERSION: libvirt_version,
    MigrationCheck.CONDITION_HOSTNAME_RESOLUTION: hostname_resolution,
    MigrationCheck.CONDITION_MIGRATION_TRANSPORT: migration_transport,
    MigrationCheck.CONDITION_LIBVIRT_LISTENING: libvirt_listening,
    MigrationCheck.CONDITION_STORAGE: storage,
    MigrationCheck.CONDITION_CONFIG_DRIVE: config_drive,
    MigrationCheck.CONDITION_NETWORK: network,
    MigrationCheck.CONDITION_CAPACITY: capacity,
    MigrationCheck.CONDITION_GROUP_POLICY: group_policy,
    MigrationCheck.CONDITION_DEVICES: devices,
    MigrationCheck.CONDITION_CONVERGENCE: convergence,
}

"""Calls on one virDomain, all blocking, each for one call of the interface; they run in threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import libvirt
import libvirt_qemu
from remuda_core.ids import InstanceId

from remuda_agent.hypervisor.libvirt import domain_xml, migration
from remuda_agent.hypervisor.libvirt.domain_xml import METADATA_PREFIX, Stamp
from remuda_agent.hypervisor.libvirt.states import translate_state
from remuda_agent.hypervisor.model import (
    METADATA_NAMESPACE,
    CompletedMigration,
    DomainJob,
    DomainMissing,
    DomainView,
    MigrationJobStats,
    MigrationRequest,
    PowerState,
    hypervisor_error,
)

_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)
_COMPLETED = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
# What jobStats answers for a guest that is off, and on the receiving side of a migration.
_NO_STATS = (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_OPERATION_UNSUPPORTED)
_LOOKS = 5
_NO_CAP_MIB_S = ((1 << 63) - 1) >> 20
"""QEMU_DOMAIN_MIG_BANDWIDTH_MAX of libvirt: what it gives QEMU when nobody asks for a cap."""
_PING = '{"execute": "guest-ping"}'


@contextmanager
def missing(instance_id: InstanceId) -> Iterator[None]:
    """A domain can go away between any two calls."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise DomainMissing(instance_id) from error
        raise


def find(connection: Any, instance_id: InstanceId) -> Any:
    """Raises DomainMissing."""
    with missing(instance_id):
        return connection.lookupByUUIDString(instance_id)


def look(domain: Any) -> DomainView | None:
    """None: it is not Remuda's. Raises libvirtError, NO_DOMAIN too."""
    # One call tells the state, another the job: "runs, no job" must not be put together from before and
    # after a switch-over. A guest does not change its state three times while it is looked at.
    for _ in range(_LOOKS):
        before = domain.state()
        shown = _look(domain, *before)
        if shown is None or domain.state() == before:
            return shown
    raise hypervisor_error(f"domain {domain.UUIDString()} changes faster than it can be looked at")


def _look(domain: Any, state: int, reason: int) -> DomainView | None:
    persistent = bool(domain.isPersistent())
    current = domain_xml.parse(domain.XMLDesc(0))
    if current.stamp is None:
        return None
    definition = None
    if persistent:
        definition = domain_xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).stamp
    power_state, word = translate_state(state, reason)
    return DomainView(
        instance_id=current.stamp.instance_id,
        epoch=current.stamp.epoch,
        operation_id=current.stamp.operation_id,
        power_state=power_state,
        reason=word,
        job=_job(domain, word) if domain.isActive() else DomainJob.NONE,
        persistent=persistent,
        machine_type=current.machine_type,
        definition_epoch=None if definition is None else definition.epoch,
    )


def view(connection: Any, instance_id: InstanceId) -> DomainView | None:
    try:
        with missing(instance_id):
            return look(find(connection, instance_id))
    except DomainMissing:
        return None


def views(connection: Any) -> list[DomainView]:
    """Every domain of Remuda, by instance id."""
    found = []
    for domain in connection.listAllDomains(0):
        try:
            shown = look(domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            continue
        if shown is not None:
            found.append(shown)
    return sorted(found, key=lambda one: one.instance_id)


def define(connection: Any, instance_id: InstanceId, xml: str) -> DomainView:
    connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    shown = view(connection, instance_id)
    if shown is None:
        raise DomainMissing(instance_id)
    return shown


def undefine(connection: Any, instance_id: InstanceId) -> None:
    try:
        domain = find(connection, instance_id)
        if domain.isActive():
            raise hypervisor_error(f"domain {instance_id} is active: its definition is not removed")
        with missing(instance_id):
            domain.undefineFlags(_UNDEFINE)
    except DomainMissing:
        return


def start(connection: Any, instance_id: InstanceId) -> None:
    domain = find(connection, instance_id)
    if domain.isActive():
        return
    try:
        with missing(instance_id):
            domain.create()
    except libvirt.libvirtError:
        # Somebody else's start may have won.
        if not domain.isActive():
            raise


def shutdown(connection: Any, instance_id: InstanceId) -> None:
    domain = find(connection, instance_id)
    try:
        with missing(instance_id):
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError:
        if domain.isActive():
            raise


def destroy(connection: Any, instance_id: InstanceId) -> None:
    try:
        domain = find(connection, instance_id)
        with missing(instance_id):
            try:
                domain.destroy()
            except libvirt.libvirtError:
                if domain.isActive():
                    raise
    except DomainMissing:
        return


def pause(connection: Any, instance_id: InstanceId) -> None:
    with missing(instance_id):
        domain = find(connection, instance_id)
        if domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
            domain.suspend()


def resume(connection: Any, instance_id: InstanceId) -> None:
    with missing(instance_id):
        domain = find(connection, instance_id)
        shown = look(domain)
        if shown is not None and shown.postcopy:
            raise hypervisor_error(f"memory of {instance_id} is split over two hosts: it is not resumed")
        state, reason = domain.state()
        if state == libvirt.VIR_DOMAIN_RUNNING:
            return
        moving = shown is not None and shown.job in (DomainJob.MIGRATION_OUT, DomainJob.MIGRATION_IN)
        if moving and reason == libvirt.VIR_DOMAIN_PAUSED_MIGRATION:
            raise hypervisor_error(f"{instance_id} is being migrated: libvirt resumes the right copy itself")
        domain.resume()


def set_stamp(connection: Any, stamp: Stamp) -> None:
    with missing(stamp.instance_id):
        domain = find(connection, stamp.instance_id)
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
        domain.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            domain_xml.metadata_element(stamp),
            METADATA_PREFIX,
            METADATA_NAMESPACE,
            flags,
        )


def migrate(connection: Any, request: MigrationRequest) -> None:
    """Blocks until libvirt's job is over. Raises libvirtError as it is."""
    with missing(request.instance_id):
        domain = find(connection, request.instance_id)
        stamp = Stamp(
            instance_id=request.instance_id, epoch=request.target_epoch, operation_id=request.operation_id
        )
        live = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE)
        definition = None
        if domain.isPersistent():
            definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        if request.max_downtime_ms:
            domain.migrateSetMaxDowntime(request.max_downtime_ms, 0)
        domain.migrateToURI3(
            migration.destination(request),
            migration.parameters(
                request,
                live_xml=domain_xml.for_target(live, stamp, request.bridges),
                persistent_xml=definition and domain_xml.for_target(definition, stamp, request.bridges),
                disks=domain_xml.parse(live).writable_disks,
            ),
            migration.flags(request),
        )


def running_stats(connection: Any, instance_id: InstanceId) -> MigrationJobStats | None:
    with missing(instance_id):
        domain = find(connection, instance_id)
        stats = _stats(domain, 0)
        if migration.running_job(stats) is not DomainJob.MIGRATION_OUT:
            return None
        power_state, reason = translate_state(*domain.state())
        return migration.job_stats(stats, reason if power_state is PowerState.PAUSED else "")


def completed_stats(connection: Any, instance_id: InstanceId) -> CompletedMigration | None:
    with missing(instance_id):
        return migration.completed(_stats(find(connection, instance_id), _COMPLETED))


def abort_job(connection: Any, instance_id: InstanceId) -> None:
    with missing(instance_id):
        domain = find(connection, instance_id)
        try:
            domain.abortJob()
        except libvirt.libvirtError as error:
            # No job is active, or the domain is off: nothing to abort.
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                raise


def set_bandwidth(connection: Any, instance_id: InstanceId, mib_per_second: int, post_copy: bool) -> None:
    with missing(instance_id):
        domain = find(connection, instance_id)
        domain.migrateSetMaxSpeed(mib_per_second or _NO_CAP_MIB_S, 0)
        if post_copy:
            domain.migrateSetMaxSpeed(mib_per_second, libvirt.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY)


def set_max_downtime(connection: Any, instance_id: InstanceId, milliseconds: int) -> int:
    with missing(instance_id):
        domain = find(connection, instance_id)
        domain.migrateSetMaxDowntime(milliseconds, 0)
        return int(domain.migrateGetMaxDowntime(0))


def start_post_copy(connection: Any, instance_id: InstanceId) -> None:
    with missing(instance_id):
        find(connection, instance_id).migrateStartPostCopy(0)


def ping_agent(connection: Any, instance_id: InstanceId, seconds: int) -> bool:
    domain = find(connection, instance_id)
    try:
        with missing(instance_id):
            libvirt_qemu.qemuAgentCommand(domain, _PING, seconds, 0)
    except libvirt.libvirtError:
        # No channel, nobody behind it, no answer in time, the guest is off: all the same to who asks.
        return False
    return True


def _stats(domain: Any, flags: int) -> dict[str, Any]:
    try:
        stats: dict[str, Any] = domain.jobStats(flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _NO_STATS:
            raise
        return {}
    return stats


def _job(domain: Any, reason: str) -> DomainJob:
    try:
        return migration.running_job(domain.jobStats(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _NO_STATS:
            raise
        # "migration statistics are available only on the source host"
        unsupported = error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED
        return DomainJob.MIGRATION_IN if unsupported or reason == "migration" else DomainJob.NONE

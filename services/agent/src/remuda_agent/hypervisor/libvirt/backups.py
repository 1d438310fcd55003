"""Pull-mode backups and checkpoints in libvirt's words; blocking calls, each for one of the interface.

https://libvirt.org/formatbackup.html, https://libvirt.org/formatcheckpoint.html
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import libvirt
from remuda_core.ids import InstanceId

from remuda_agent.hypervisor.backups import BITMAP, DISK, BackupRequest
from remuda_agent.hypervisor.libvirt import domain_calls, domain_xml
from remuda_agent.hypervisor.model import hypervisor_error

END_SECONDS = 30.0
_POLL_SECONDS = 0.05
_THAW_SECONDS = 5
# For a guest that is off: "domain is not running", or no job at all.
_NONE = (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_OPERATION_UNSUPPORTED)


def backup_xml(request: BackupRequest, others: Sequence[str]) -> str:
    """`others`: targets of disks that are left out; a disk that is not named would be taken, too."""
    backup = ET.Element("domainbackup", mode="pull")
    if request.since:
        ET.SubElement(backup, "incremental").text = request.since
    ET.SubElement(backup, "server", transport="unix", socket=str(request.socket))
    disks = ET.SubElement(backup, "disks")
    disk = ET.SubElement(disks, "disk", name=DISK, backup="yes", type="file", exportname=DISK)
    if request.since:
        disk.set("exportbitmap", BITMAP)
    ET.SubElement(disk, "scratch", file=str(request.scratch))
    for target in others:
        ET.SubElement(disks, "disk", name=target, backup="no")
    return ET.tostring(backup, encoding="unicode")


def checkpoint_xml(name: str, others: Sequence[str]) -> str:
    """A dirty bitmap in the system disk's file."""
    checkpoint = ET.Element("domaincheckpoint")
    ET.SubElement(checkpoint, "name").text = name
    disks = ET.SubElement(checkpoint, "disks")
    ET.SubElement(disks, "disk", name=DISK, checkpoint="bitmap")
    for target in others:
        ET.SubElement(disks, "disk", name=target, checkpoint="no")
    return ET.tostring(checkpoint, encoding="unicode")


def begin(connection: Any, request: BackupRequest) -> None:
    with domain_calls.missing(request.instance_id):
        domain = domain_calls.find(connection, request.instance_id)
        parsed = domain_xml.parse(domain.XMLDesc(0))
        others = [target for target in parsed.writable_disks if target != DISK]
        checkpoint = checkpoint_xml(request.checkpoint, others) if request.checkpoint else None
        domain.backupBegin(backup_xml(request, others), checkpoint, 0)


def end(connection: Any, instance_id: InstanceId) -> None:
    """abortJob is how a pull backup ends well, too."""
    with domain_calls.missing(instance_id):
        domain = domain_calls.find(connection, instance_id)
        give_up = time.monotonic() + END_SECONDS
        asked = False
        while _runs(domain):
            if not asked:
                try:
                    domain.abortJob()
                except libvirt.libvirtError as error:
                    if error.get_error_code() not in _NONE:
                        raise
                asked = True
            if time.monotonic() > give_up:
                raise hypervisor_error(f"the backup of {instance_id} has not ended in {END_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)


def _runs(domain: Any) -> bool:
    try:
        stats = domain.jobStats(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _NONE:
            raise
        return False
    running = stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE
    return bool(running and stats.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP)


def checkpoints(connection: Any, instance_id: InstanceId) -> list[str]:
    with domain_calls.missing(instance_id):
        domain = domain_calls.find(connection, instance_id)
        return [checkpoint.getName() for checkpoint in domain.listAllCheckpoints(0)]


def delete_checkpoint(connection: Any, instance_id: InstanceId, name: str) -> None:
    with domain_calls.missing(instance_id):
        domain = domain_calls.find(connection, instance_id)
        try:
            checkpoint = domain.checkpointLookupByName(name, 0)
            # The bitmap is in a file that only a running QEMU may write to.
            active = domain.isActive()
            checkpoint.delete(0 if active else libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                raise


def undo(connection: Any, instance_id: InstanceId, *, resume: bool) -> None:
    """Thaw and perhaps resume: for a guard that has died. Raises when the guest's agent does not answer."""
    if resume:
        domain_calls.resume(connection, instance_id)
    with domain_calls.missing(instance_id):
        domain = domain_calls.find(connection, instance_id)
        domain.agentSetResponseTimeout(_THAW_SECONDS, 0)
        domain.fsThaw()

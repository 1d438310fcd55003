"""Checkpoints of one virDomain: a name in libvirt, and a dirty bitmap in the system disk's file.

https://libvirt.org/formatcheckpoint.html
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import libvirt

from remuda_agent.hypervisor.backups import DISK


def to_xml(name: str, others: Sequence[str]) -> str:
    """`others`: targets of disks without a bitmap; a disk that is not named would get one."""
    checkpoint = ET.Element("domaincheckpoint")
    ET.SubElement(checkpoint, "name").text = name
    disks = ET.SubElement(checkpoint, "disks")
    ET.SubElement(disks, "disk", name=DISK, checkpoint="bitmap")
    for target in others:
        ET.SubElement(disks, "disk", name=target, checkpoint="no")
    return ET.tostring(checkpoint, encoding="unicode")


def names(domain: Any) -> list[str]:
    # Without the flag they come in the order of a hash table.
    listed = domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
    return [checkpoint.getName() for checkpoint in listed]


def delete(domain: Any, name: str) -> None:
    """None of that name is a success. Raises libvirtError."""
    try:
        checkpoint = domain.checkpointLookupByName(name, 0)
        # The bitmap is in a file that only a running QEMU may write to.
        if domain.isActive():
            try:
                checkpoint.delete(0)
            except libvirt.libvirtError:
                # A bitmap that QEMU could not close may refuse everything; it is not to be used either.
                checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        else:
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
            raise

"""The raw tool beside snapshots: a full backup of a running guest's disk into a file, by libvirt alone."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import libvirt
from remuda_lab.errors import LabError

BACKUP_SECONDS = 600.0
_POLL_SECONDS = 0.02
DISKS = """\
<domainbackup mode="push">
  <disks>
    <disk name="vda" backup="yes" type="file"><driver type="qcow2"/><target file="{file}"/></disk>
    <disk name="vdb" backup="no"/>
  </disks>
</domainbackup>
"""
"""vdb: the config drive, which no image has either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FullBackup:
    """``virsh backup-begin`` in push mode, without a checkpoint: every block that holds something.

    ``inside``, ``outside``: the file, as the guest's host and as the machine sees it.
    """

    domain: libvirt.virDomain
    inside: str
    outside: Path

    def take(self) -> tuple[float, int]:
        """Seconds until the file is on the disk (fsync), as an image store's chunks are, and its bytes there;
        it is removed. Raises LabError when the backup failed.
        """
        began = time.perf_counter()
        try:
            self.domain.backupBegin(DISKS.format(file=self.inside), None, 0)
            self._wait(began + BACKUP_SECONDS)
            _sync(self.outside)
            seconds = time.perf_counter() - began
            stats = self.domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
            if stats.get("type") != libvirt.VIR_DOMAIN_JOB_COMPLETED:
                raise LabError(f"libvirt's backup of {self.domain.name()} failed: {stats}")
            return seconds, self.outside.stat().st_blocks * 512
        except libvirt.libvirtError as error:
            raise LabError(f"libvirt's backup of {self.domain.name()}: {error}") from error
        finally:
            self.outside.unlink(missing_ok=True)

    def _wait(self, deadline: float) -> None:
        while self.domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            if time.perf_counter() > deadline:
                self.domain.abortJob()
                raise LabError(f"libvirt's backup of {self.domain.name()} did not end in {BACKUP_SECONDS} s")
            time.sleep(_POLL_SECONDS)


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())

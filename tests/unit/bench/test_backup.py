"""libvirt's full backup, the raw tool beside snapshots: what of it is believed."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import libvirt
import pytest
from remuda_bench.images.backup import FullBackup
from remuda_lab.errors import LabError


@dataclass
class Domain:
    """A job that is seen running twice, and ends as it is told to."""

    file: Path
    ends_as: int
    begins: bool = True
    _states: list[int] = field(
        default_factory=lambda: [libvirt.VIR_DOMAIN_JOB_UNBOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED]
    )

    def name(self) -> str:
        return "guest"

    def backupBegin(self, xml: str, checkpoint: None, flags: int) -> None:
        assert checkpoint is None
        assert flags == 0
        found = re.search('<disk name="vda" backup="yes".*<target file="(.*)"/>', xml)
        assert found is not None
        assert found[1] == "/inside/file"
        if not self.begins:
            raise libvirt.libvirtError("no")
        self.file.write_bytes(bytes(8192))

    def jobInfo(self) -> list[int]:
        return [self._states.pop() if self._states else libvirt.VIR_DOMAIN_JOB_NONE]

    def jobStats(self, flags: int) -> dict[str, Any]:
        assert flags == libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED
        return {"type": self.ends_as}


def backup(domain: Domain) -> FullBackup:
    return FullBackup(domain=cast("libvirt.virDomain", domain), inside="/inside/file", outside=domain.file)


def test_a_backup_is_over_when_its_job_is_and_its_file_does_not_stay(tmp_path: Path) -> None:
    domain = Domain(tmp_path / "file", libvirt.VIR_DOMAIN_JOB_COMPLETED)
    seconds, size = backup(domain).take()
    assert seconds > 0
    assert size >= 8192
    assert not domain.file.exists()


@pytest.mark.parametrize(("ends_as", "begins"), [(libvirt.VIR_DOMAIN_JOB_FAILED, True), (0, False)])
def test_a_backup_that_fails_is_no_figure(tmp_path: Path, ends_as: int, begins: bool) -> None:
    domain = Domain(tmp_path / "file", ends_as, begins)
    with pytest.raises(LabError, match="backup of guest"):
        backup(domain).take()
    assert not domain.file.exists()

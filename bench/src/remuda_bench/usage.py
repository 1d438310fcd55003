"""Processor time and memory of processes, as the kernel counts them: proc_pid_stat(5), proc_pid_status(5)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from remuda_lab.errors import LabError
from remuda_lab.processes import PROC, ProcessRef, read_stat

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Processor seconds since each process started, by name, at a moment (monotonic seconds)."""

    at: float
    seconds: Mapping[str, float]

    def since(self, before: Usage) -> dict[str, float]:
        """Seconds by name. Raises KeyError for a name that was not there before."""
        return {name: used - before.seconds[name] for name, used in self.seconds.items()}


def cpu_seconds(process: ProcessRef) -> float:
    """User and system time, that of the children which have ended included (qemu-img, mkfs and the like).

    A tick of the kernel is 10 ms. Raises LabError when the process is gone.
    """
    fields = _stat_fields(process)
    return sum(int(field) for field in fields[11:15]) / _TICKS_PER_SECOND


def resident_bytes(process: ProcessRef) -> int:
    """Resident set, pages shared with others included. Raises LabError when the process is gone."""
    try:
        text = (PROC / str(process.pid) / "status").read_text()
    except OSError as error:
        raise LabError(f"process {process.pid} is gone") from error
    line = next(line for line in text.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def _stat_fields(process: ProcessRef) -> list[str]:
    stat = read_stat(process.pid)
    if stat is None or stat.started != process.started:
        raise LabError(f"process {process.pid} is gone: a service ended while it was measured")
    text = (PROC / str(process.pid) / "stat").read_text()
    return text[text.rindex(")") + 2 :].split()

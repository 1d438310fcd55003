"""Processes named so that a recycled pid is never mistaken for the one that was meant."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from remuda_lab.waiting import wait_for

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRef:
    """A process by pid and start time (clock ticks since the machine booted), as seen from the machine."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessRef:
        """Raises ProcessLookupError when there is no such process."""
        stat = read_stat(pid)
        if stat is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid=pid, started=stat.started)

    def alive(self) -> bool:
        """Whether this very process exists and is not a zombie."""
        stat = read_stat(self.pid)
        return stat is not None and stat.started == self.started and stat.state != "Z"

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, unless the process is already gone."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def wait_gone(self, *, timeout: float) -> None:
        """Wait for the end of the process, at most ``timeout`` seconds. Raises WaitTimeout."""
        wait_for(f"process {self.pid} ends", lambda: not self.alive(), timeout=timeout, interval=0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """The fields of /proc/PID/stat that the lab uses (proc_pid_stat(5))."""

    state: str
    parent: int
    started: int


def read_stat(pid: int) -> Stat | None:
    """None when the process is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses; everything after the last one is regular.
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(state=fields[0], parent=int(fields[1]), started=int(fields[19]))


def ticks_since_boot() -> int:
    """Now, in the unit of a process's start time."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def all_pids() -> Iterator[int]:
    """Every pid of the machine right now."""
    for entry in os.scandir(PROC):
        if entry.name.isdigit():
            yield int(entry.name)


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    try:
        text = (PROC / str(pid) / "task" / str(pid) / "children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(word) for word in text.split()]


def command_line(pid: int) -> list[str]:
    """The arguments of a process; empty for kernel threads and processes that are gone."""
    try:
        data = (PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return data.decode(errors="replace").rstrip("\0").split("\0") if data else []


def namespace(pid: int, kind: str) -> str | None:
    """The identity of a process's namespace, e.g. ``pid:[4026532207]``; None when the process is gone."""
    try:
        return str((PROC / str(pid) / "ns" / kind).readlink())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def pid_inside(pid: int) -> int | None:
    """The pid that a process has in its own (innermost) pid namespace."""
    try:
        status = (PROC / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return None


def processes_in_namespace(init: int) -> list[int]:
    """The machine's pids of every process in the pid namespace of ``init``, nested ones left out."""
    wanted = namespace(init, "pid")
    return [pid for pid in all_pids() if wanted is not None and namespace(pid, "pid") == wanted]

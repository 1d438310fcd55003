"""How many copies of a guest run at a time, by what their CPUs do: no daemon's word counts.

The virtual CPU of a QEMU is a thread of its own. One that receives a guest, or whose guest is paused, leaves
it idle; a guest that runs uses it many times a second. So it shows what libvirt cannot be asked while it is
dead.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from remuda_lab.lab import Lab
from remuda_lab.processes import PROC, all_pids, command_line, namespace

WINDOW_SECONDS = 1.0
_RUNS_FROM = 2
"""Ticks of 10 ms in a window. An idle guest of the lab uses ten; one that stands still, none."""


@dataclass(slots=True)
class CopyWatch:
    """Watches from when it is entered until its end."""

    lab: Lab
    uid: str
    windows: list[frozenset[str]] = field(default_factory=list)
    """Hosts on which the guest ran, window by window."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> CopyWatch:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def at_once(self) -> int:
        """Most copies that ran in two windows one after the other: a guest that moves within one shows on
        both hosts in that one.
        """
        pairs = zip(self.windows, self.windows[1:], strict=False)
        return max((len(earlier & later) for earlier, later in pairs), default=0)

    def _watch(self) -> None:
        used = self._used()
        while not self._stop.wait(WINDOW_SECONDS):
            now = self._used()
            ran = {
                host for (host, pid), ticks in now.items() if ticks - used.get((host, pid), 0) >= _RUNS_FROM
            }
            self.windows.append(frozenset(ran))
            used = now

    def _used(self) -> dict[tuple[str, int], int]:
        """Ticks that virtual CPUs have used, by host and pid of their QEMU."""
        hosts = {}
        for name in self.lab.running_hosts():
            try:
                hosts[namespace(self.lab.host(name).init.pid, "pid")] = name
            except LookupError:
                continue
        found = {}
        for pid in all_pids():
            argv = command_line(pid)
            if not argv or "qemu-system" not in argv[0] or not any(self.uid in word for word in argv):
                continue
            host = hosts.get(namespace(pid, "pid"))
            if host is not None:
                found[(host, pid)] = _cpu_ticks(pid)
        return found


def _cpu_ticks(pid: int) -> int:
    total = 0
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            total += _ticks_of(task)
    except OSError:
        return total
    return total


def _ticks_of(task: Path) -> int:
    text = (task / "stat").read_text()
    name, _, rest = text.rpartition(")")
    fields = rest.split()
    return int(fields[11]) + int(fields[12]) if "CPU" in name else 0

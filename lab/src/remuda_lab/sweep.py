"""Leftovers: finding what a killed run left of this lab, and proving that nothing is left."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from remuda_lab.errors import LabError, WaitTimeout
from remuda_lab.layout import LabPaths
from remuda_lab.processes import ProcessRef, all_pids, command_line, namespace, read_stat, ticks_since_boot
from remuda_lab.waiting import wait_for

_MODULES = ("remuda_lab.supervisor", "remuda_lab.forward")
_KINDS = ("net", "mnt", "pid", "uts", "ipc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The namespaces of a lab, by identity, taken right before it ends.

    The kernel gives the identities of ended namespaces to new ones, for example to those of another lab that
    starts meanwhile: whoever started later than ``taken`` (clock ticks since the machine booted) is not ours.
    """

    namespaces: frozenset[str]
    taken: int


def footprint(inits: Iterable[ProcessRef]) -> Footprint:
    """The namespaces of the given processes that are not the machine's own."""
    found = {namespace(init.pid, kind) for init in inits for kind in _KINDS}
    # Ours, and pid 1's: a lab may itself be started inside a container.
    own = {namespace(pid, kind) for pid in (os.getpid(), 1) for kind in _KINDS}
    return Footprint(
        namespaces=frozenset(name for name in found - own if name is not None), taken=ticks_since_boot()
    )


def own_processes(paths: LabPaths) -> list[ProcessRef]:
    """Supervisors and forwarders that carry this lab's directory on their command line."""
    found = []
    for pid in all_pids():
        argv = command_line(pid)
        if not any(module in argv for module in _MODULES) or "--lab" not in argv:
            continue
        if argv[argv.index("--lab") + 1 :][:1] == [str(paths.root)]:
            try:
                found.append(ProcessRef.of(pid))
            except ProcessLookupError:
                continue
    return found


def kill_leftovers(paths: LabPaths, recorded: Iterable[ProcessRef] = ()) -> int:
    """End every process that belongs to this lab, recorded or found; return how many there were."""
    doomed = {ref.pid: ref for ref in [*recorded, *own_processes(paths)] if ref.alive()}
    # unshare and nsenter wait for their child and end with it. Killed first they would leave a zombie to the
    # machine's pid 1, and a pid namespace is not gone before its last zombie is.
    waiting = [ref for ref in doomed.values() if _is_wrapper(ref)]
    for ref in doomed.values():
        if ref not in waiting:
            ref.kill()
    for ref in doomed.values():
        try:
            ref.wait_gone(timeout=10)
        except WaitTimeout:
            if ref not in waiting:
                raise
            ref.kill()
    return len(doomed)


def _is_wrapper(ref: ProcessRef) -> bool:
    return Path((command_line(ref.pid) or [""])[0]).name in {"unshare", "nsenter"}


def leftovers(paths: LabPaths, seen: Footprint) -> list[str]:
    """Sentences about everything of the lab that still exists outside its directory; empty when all is
    gone.
    """
    found = [f"process {ref.pid}: {' '.join(command_line(ref.pid))}" for ref in own_processes(paths)]
    for pid in all_pids():
        inside = {namespace(pid, kind) for kind in _KINDS} & seen.namespaces
        if not inside or (stat := read_stat(pid)) is None:
            continue
        if stat.state != "Z" and stat.started <= seen.taken:
            found.append(
                f"process {pid} in {sorted(filter(None, inside))}: {' '.join(command_line(pid))[:80]}"
            )
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        # proc_pid_mountinfo(5): root within the file system (for nsfs the namespace's name), mount point
        if f"{fields[4]}/".startswith(f"{paths.root}/") or fields[3] in seen.namespaces:
            found.append(f"mount {fields[4]}")
    return found


def assert_nothing_left(paths: LabPaths, seen: Footprint) -> None:
    """Raises LabError listing what is left. A process that is dying gets ten seconds."""
    try:
        wait_for("nothing is left of the lab", lambda: not leftovers(paths, seen), timeout=10)
    except LabError as error:
        raise LabError("left behind:\n" + "\n".join(leftovers(paths, seen))) from error


def machine_interfaces() -> set[str]:
    """Names of the interfaces in the network namespace of this process."""
    return {path.name for path in Path("/sys/class/net").iterdir()}

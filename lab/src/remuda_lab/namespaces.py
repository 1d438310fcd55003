"""Making namespaces, entering them, and opening sockets in them without leaving our own."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from remuda_lab.commands import find
from remuda_lab.errors import LabError
from remuda_lab.processes import ProcessRef, children
from remuda_lab.waiting import wait_for

_CLONE_NEWNET = 0x40000000  # sched.h; os.setns exists from Python 3.12 only
_UNSHARE_FLAGS = {"net": "--net", "mnt": "--mount", "uts": "--uts", "ipc": "--ipc"}
_NSENTER_FLAGS = {"net": "-n", "mnt": "-m", "uts": "-u", "ipc": "-i", "pid": "-p"}

FABRIC_KINDS = ("net", "mnt", "pid")
HOST_KINDS = ("net", "mnt", "uts", "ipc", "pid")


def unshare_command(kinds: Sequence[str], argv: Sequence[str]) -> list[str]:
    """A command that runs ``argv`` as pid 1 of new namespaces.

    The kernel kills everything in a pid namespace with its pid 1, and --kill-child kills that with unshare
    itself.
    """
    flags = [_UNSHARE_FLAGS[kind] for kind in kinds if kind != "pid"]
    return [
        str(find("unshare")),
        *flags,
        "--pid",
        "--fork",
        "--mount-proc",
        "--propagation",
        "private",
        "--kill-child=SIGKILL",
        "--",
        *argv,
    ]


def spawn_holder(
    kinds: Sequence[str], argv: Sequence[str], *, log: Path, pass_fds: Sequence[int] = ()
) -> ProcessRef:
    """Start ``argv`` as pid 1 of new namespaces, in a session of its own; return that pid 1, seen from
    outside.
    """
    with log.open("ab") as output:
        holder = subprocess.Popen(
            unshare_command(kinds, argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
            cwd="/",
        )
    return wait_for_child(holder.pid, alive=lambda: holder.poll() is None, log=log)


def wait_for_child(unshare_pid: int, *, alive: Callable[[], bool], log: Path) -> ProcessRef:
    """The pid 1 that an unshare process has forked. Raises LabError when unshare ended instead."""

    def forked() -> int | None:
        if not alive():
            raise LabError(f"unshare failed; see {log}:\n{log.read_text()[-500:]}")
        return next(iter(children(unshare_pid)), None)

    return ProcessRef.of(wait_for(f"unshare {unshare_pid} forks", forked, timeout=10, interval=0.005))


def enter_command(init: int, kinds: Sequence[str], argv: Sequence[str]) -> list[str]:
    """A command that runs ``argv`` inside namespaces of process ``init``."""
    flags = [_NSENTER_FLAGS[kind] for kind in kinds]
    directory = ["--wd=/"] if "mnt" in kinds else []
    return [str(find("nsenter")), "-t", str(init), *flags, *directory, "--", *argv]


def enter_network(init: int) -> None:
    """Move the calling *thread* into the network namespace of process ``init``. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/proc/{init}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"setns to the network of process {init}: {os.strerror(number)}")
    finally:
        os.close(fd)


def socket_in_network(
    init: int, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
) -> socket.socket:
    """A socket that belongs to another network namespace and is used from here.

    A socket stays in the namespace it was made in, so a short-lived thread enters, makes it, and ends.
    """
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def make() -> None:
        try:
            enter_network(init)
            made.append(socket.socket(family, kind, protocol))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=make, name="socket-in-network")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def connect_in_network(init: int, address: tuple[str, int], *, timeout: float) -> socket.socket:
    """A TCP connection made from inside another network namespace. ``timeout`` in seconds. Raises OSError."""
    connection = socket_in_network(init)
    try:
        connection.settimeout(timeout)
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection

"""Ends connections of a migration whose other end has fallen silent.

QEMU sets no bound on them, so that TCP's own counts: a quarter of an hour. When the target's host is cut off
or loses power while disks are copied, libvirt notices after its keepalive and has QEMU drop the copy; QEMU
then waits for what is still on its way, with its main loop: the guest stands still, although libvirt
calls it running, and no call about it comes back, abort included (measured, QEMU 7.2). With a bound the
connection breaks, and the job ends as it does for any broken connection.

A socket's options belong to the socket, not to the process that sets them, so they are set from here, on
duplicates of QEMU's descriptors (pidfd_getfd(2), Linux 5.6).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from remuda_core.ids import InstanceId

SILENCE_SECONDS = 15
"""Less than libvirt waits by default (six times 5 s), or the guest would stand still in between. Much more
than a target that is alive needs to acknowledge a segment."""
_PROBE_AFTER_SECONDS, _PROBE_EVERY_SECONDS = 5, 3
"""For a connection on which only an answer is waited for."""
_PIDFD_GETFD = 438
"""On every architecture."""

_libc = ctypes.CDLL(None, use_errno=True)


def qemu_of(instance_id: InstanceId, proc: Path = Path("/proc")) -> int | None:
    """The pid of the guest's QEMU, as libvirt starts it; None: there is none."""
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-uuid" in argv and argv[argv.index(b"-uuid") + 1] == instance_id.encode():
            return int(entry.name)
    return None


def bound(pid: int, peer: str) -> int:
    """Bounds every TCP connection of a process to a host (address or name); returns how many there are.

    Raises OSError: the process is gone, may not be touched, or the name has no address.
    """
    wanted = {_plain(str(found[4][0])) for found in socket.getaddrinfo(peer, None, type=socket.SOCK_STREAM)}
    pidfd = os.pidfd_open(pid)
    try:
        return sum(_bound(pidfd, fd, wanted) for fd in _sockets(pid))
    finally:
        os.close(pidfd)


def _sockets(pid: int) -> list[int]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(entry.readlink()).startswith("socket:"):
                found.append(int(entry.name))
        except FileNotFoundError:
            continue
    return found


def _bound(pidfd: int, number: int, wanted: set[str]) -> bool:
    duplicate = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if duplicate < 0:
        error = ctypes.get_errno()
        if error in (errno.EBADF, errno.ESRCH):  # closed, or the process ended, since it was listed
            return False
        raise OSError(error, os.strerror(error), f"descriptor {number} of QEMU")
    with socket.socket(fileno=duplicate) as connection:
        if (
            connection.family not in (socket.AF_INET, socket.AF_INET6)
            or connection.type != socket.SOCK_STREAM
        ):
            return False
        try:
            if _plain(connection.getpeername()[0]) not in wanted:
                return False
        except OSError:  # not connected
            return False
        for option, value in (
            (socket.TCP_USER_TIMEOUT, SILENCE_SECONDS * 1000),
            (socket.TCP_KEEPIDLE, _PROBE_AFTER_SECONDS),
            (socket.TCP_KEEPINTVL, _PROBE_EVERY_SECONDS),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return True


def _plain(address: str) -> str:
    """An IPv4 address that comes as IPv6 is the same host."""
    parsed = ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)

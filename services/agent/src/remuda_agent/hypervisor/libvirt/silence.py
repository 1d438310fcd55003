"""Ends connections of a migration whose other end has fallen silent.

QEMU sets no bound on them, so that TCP's own counts: a quarter of an hour. When the target's host is cut off
or loses power while disks are copied, libvirt notices after its keepalive and has QEMU drop the copy; QEMU
then waits for what is still on its way, with its main loop: the guest stands still, although libvirt
calls it running, and no call about it comes back, abort included (measured, QEMU 7.2). With a bound the
connection breaks, and the job ends as it does for any broken connection.

The other way round, libvirt can miss that a guest has ended (measured, libvirt 9.0: it powers itself off in
the middle): its call waits for ever for a word of a QEMU that is gone, and keeps the domain locked, so that
it cannot even be started. That the connection to the target broke wakes it up.

A socket's options belong to the socket, not to the process that sets them, so they are set from here, on
duplicates of QEMU's descriptors (pidfd_getfd(2), Linux 5.6).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Collection, Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from remuda_core.ids import InstanceId

SILENCE_SECONDS = 15
"""Less than libvirt waits by default (six times 5 s), or the guest would stand still in between. Much more
than a target that is alive needs to acknowledge a segment."""
_PROBE_AFTER_SECONDS, _PROBE_EVERY_SECONDS = 5, 3
"""For a connection on which only an answer is waited for."""
LIBVIRT_PORTS = (16509, 16514)
"""TCP and TLS, where a migration's libvirtd connects to."""
_DAEMONS = ("libvirtd", "virtqemud")
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
    count = 0
    for connection in _connections(pid, peer):
        for option, value in (
            (socket.TCP_USER_TIMEOUT, SILENCE_SECONDS * 1000),
            (socket.TCP_KEEPIDLE, _PROBE_AFTER_SECONDS),
            (socket.TCP_KEEPINTVL, _PROBE_EVERY_SECONDS),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        count += 1
    return count


def daemons(proc: Path = Path("/proc")) -> list[int]:
    """The pids of libvirt's daemon for QEMU: one, but for the moment of a restart."""
    found = []
    for entry in proc.iterdir():
        try:
            if entry.name.isdigit() and (entry / "comm").read_text().strip() in _DAEMONS:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def sever(pid: int, peer: str, ports: Collection[int] = LIBVIRT_PORTS) -> int:
    """Breaks every TCP connection of a process to a host's ports; returns how many. Raises OSError."""
    count = 0
    for connection in _connections(pid, peer):
        if connection.getpeername()[1] in ports:
            connection.shutdown(socket.SHUT_RDWR)
            count += 1
    return count


def _connections(pid: int, peer: str) -> Iterator[socket.socket]:
    """Duplicates, each open until the next is taken."""
    wanted = {_plain(str(found[4][0])) for found in socket.getaddrinfo(peer, None, type=socket.SOCK_STREAM)}
    pidfd = os.pidfd_open(pid)
    try:
        for number in _sockets(pid):
            duplicate = _duplicate(pidfd, number)
            if duplicate is not None:
                with duplicate:
                    if _leads_to(duplicate, wanted):
                        yield duplicate
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


def _duplicate(pidfd: int, number: int) -> socket.socket | None:
    """None: closed, or the process has ended, since it was listed."""
    descriptor = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if descriptor >= 0:
        return socket.socket(fileno=descriptor)
    error = ctypes.get_errno()
    if error in (errno.EBADF, errno.ESRCH):
        return None
    raise OSError(error, os.strerror(error), f"descriptor {number}")


def _leads_to(connection: socket.socket, wanted: set[str]) -> bool:
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
        return False
    try:
        return _plain(connection.getpeername()[0]) in wanted
    except OSError:  # not connected
        return False


def _plain(address: str) -> str:
    """An IPv4 address that comes as IPv6 is the same host."""
    parsed = ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)

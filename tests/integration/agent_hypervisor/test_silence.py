"""Connections of another process, bounded from outside it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from remuda_agent.hypervisor.libvirt import silence
from remuda_core.ids import InstanceId

INSTANCE = InstanceId("0b7b6c1e-8f0e-4c3c-9a51-2f3f7a7b9d10")

TALKER = """
import socket, sys
port = int(sys.argv[1])
talks = socket.create_connection(("127.0.0.1", port))
other = socket.create_connection(("127.0.0.2", port))
print("connected", flush=True)
sys.stdin.read()
for one in (talks, other):
    keepalive = one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    one.setblocking(False)
    try:
        state = "open" if one.recv(1) else "ended"
    except BlockingIOError:
        state = "open"
    print(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), keepalive, state)
"""


@contextmanager
def talker() -> Iterator[subprocess.Popen[str]]:
    """A process like QEMU by its arguments, connected to two hosts."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = str(server.getsockname()[1])
        argv = [sys.executable, "-c", TALKER, port, "-uuid", INSTANCE]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            try:
                yield process
            finally:
                process.kill()


def test_connections_to_the_target_break_when_it_is_silent_and_others_are_left_alone() -> None:
    with talker() as process:
        assert silence.bound(process.pid, "127.0.0.1") == 1
        said, _ = process.communicate(timeout=30)
    assert said.split("\n")[:2] == [f"{silence.SILENCE_SECONDS * 1000} 1 open", "0 0 open"]


def test_bounding_again_finds_the_same_connections() -> None:
    with talker() as process:
        assert [silence.bound(process.pid, "127.0.0.1") for _ in range(2)] == [1, 1]


def test_the_process_of_a_guest_is_found_by_its_arguments() -> None:
    with talker() as process:
        assert silence.qemu_of(INSTANCE) == process.pid
    assert silence.qemu_of(INSTANCE) is None


def test_a_process_that_is_gone_is_an_error() -> None:
    with talker() as process:
        pass
    with pytest.raises(OSError, match="process"):
        silence.bound(process.pid, "127.0.0.1")


def test_connections_to_the_ports_of_libvirt_are_broken_and_others_are_not() -> None:
    with talker() as process:
        (port,) = ports(process, "127.0.0.1")
        assert silence.sever(process.pid, "127.0.0.1", ports=(port + 1,)) == 0
        assert silence.sever(process.pid, "127.0.0.1", ports=(port,)) == 1
        said, _ = process.communicate(timeout=30)
    assert said.split("\n")[:2] == ["0 0 ended", "0 0 open"]


def ports(process: subprocess.Popen[str], peer: str) -> list[int]:
    """Where the process is connected to at a host."""
    return [int(one.getpeername()[1]) for one in silence._connections(process.pid, peer)]

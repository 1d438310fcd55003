"""Words between two libvirtds that get lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from remuda_lab.faults.move import Move
from remuda_lab.faults.scene import Scene
from remuda_lab.host_files import LIBVIRT_TLS_PORT
from remuda_lab.mesh import Mesh
from remuda_lab.waiting import wait_for

_BARE_ACKNOWLEDGEMENT = 64
"""Bytes of an IPv4 packet: headers with timestamps and one selective acknowledgement."""


@contextmanager
def unheard(mesh: Mesh, host: str) -> Iterator[None]:
    """What the host's libvirtd answers to others does not arrive; what it is told, does.

    Done while a guest is on its way there, and the move let end at once: the target resumes the guest, and
    the source never hears of it. Its libvirtd gives the connection up after eight seconds.
    """
    # Bare acknowledgements pass: without them TCP holds back what the source still has to tell.
    words = ("-m", "length", "--length", f"{_BARE_ACKNOWLEDGEMENT + 1}:65535")
    rule = ("OUTPUT", "-p", "tcp", "--sport", str(LIBVIRT_TLS_PORT), *words, "-j", "DROP")
    mesh.lab.host(host).run(["iptables", "-A", *rule])
    try:
        yield
    finally:
        if host in mesh.lab.running_hosts():
            mesh.lab.host(host).run(["iptables", "-D", *rule])


@contextmanager
def arrived_unheard(mesh: Mesh, stage: Scene) -> Iterator[Move]:
    """The guest has just been resumed at the target, and stands still at the source, whose libvirtd waits for
    the target's last word. Nobody has told the leader. Use it within five seconds.
    """
    move = stage.begin()
    # So near the end that it comes before the source's libvirtd misses the other.
    move.wait_memory(at_most=8 << 20)
    stage.struck()
    with unheard(mesh, stage.target):
        move.hasten()
        wait_for(
            "the guest runs at the target",
            lambda: mesh.domains(stage.target).get(stage.guest.uid) == "running",
            timeout=30,
            status=move.judgements,
        )
        yield move

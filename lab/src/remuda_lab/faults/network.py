"""Words between two libvirtds that get lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from remuda_lab.errors import LabError
from remuda_lab.faults.move import Move
from remuda_lab.faults.scene import Scene
from remuda_lab.host_files import LIBVIRT_TLS_PORT
from remuda_lab.mesh import Mesh
from remuda_lab.waiting import wait_for

_BARE_ACKNOWLEDGEMENT = 64
"""Bytes of an IPv4 packet: headers with timestamps and one selective acknowledgement."""

_MIB_S = 4
_NEARLY_THERE_BYTES = 8 << 20
"""Two seconds at that rate: seen in time, and sent before a libvirtd misses another."""
_TRIES = 3


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

    Begun again when the machine was so slow that the source's libvirtd missed the other before the end.
    """
    for _ in range(_TRIES):
        move = stage.begin(bandwidth=_MIB_S)
        move.wait_memory(at_most=_NEARLY_THERE_BYTES)
        stage.struck()
        with unheard(mesh, stage.target):
            move.hasten()
            if _arrives(mesh, stage, move):
                yield move
                return
        move.wait_end()
        stage.wait_clean(stage.source)
    raise LabError(f"in {_TRIES} tries the source's libvirtd gave up before the guest had arrived")


def _arrives(mesh: Mesh, stage: Scene, move: Move) -> bool:
    """Waits until the target runs the guest; False: the move ends without that."""

    def seen() -> str | None:
        if mesh.domains(stage.target).get(stage.guest.uid) == "running":
            return "arrived"
        return "over" if move.over else None

    return wait_for("the guest arrives", seen, timeout=60, status=move.judgements) == "arrived"

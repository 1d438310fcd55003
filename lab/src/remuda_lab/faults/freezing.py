"""Processes that stand still for a while: neither dead nor alive, the hardest thing to be judged rightly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from remuda_lab.lab import Lab
from remuda_lab.mesh import Mesh
from remuda_lab.processes import ProcessRef


@contextmanager
def frozen(process: ProcessRef) -> Iterator[None]:
    """SIGSTOP for the length of the block."""
    process.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        process.kill(signal.SIGCONT)


@contextmanager
def killed(mesh: Mesh, service: str) -> Iterator[None]:
    """SIGKILL, and started again after the block. ``service``: see Cluster.kill."""
    mesh.cluster.kill(service)
    try:
        yield
    finally:
        mesh.cluster.start(service)


def libvirtd(lab: Lab, host: str) -> ProcessRef:
    """The host's libvirtd. Raises LookupError when it does not run."""
    pid = lab.host(host).units.status()["libvirtd"].pid
    if pid is None:
        raise LookupError(f"{host} runs no libvirtd")
    return ProcessRef.of(pid)

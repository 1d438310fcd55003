"""One mesh for all tests here. Whatever a test launched is deleted after it, and proven gone everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from remuda_lab.mesh import Mesh
from remuda_lab.testing import mesh
from remuda_lab.waiting import wait_for

__all__ = ["mesh"]

PER_INSTANCE = (
    "instances/",
    "instance_names/",
    "instance_status/",
    "claims/",
    "journals/",
    "cancels/",
    "debts/",
    "ports/",
    "macs/",
    "image_refs/",
)
"""Key prefixes that are empty when there is no instance and no running operation."""


@pytest.fixture(autouse=True)
def nothing_left(mesh: Mesh) -> Iterator[None]:
    """Every test begins with all hosts up and ends with no instance, on any host and in etcd. A module whose
    tests share a guest has a fixture of this name for itself.
    """
    with leaving_nothing(mesh):
        yield


@contextmanager
def leaving_nothing(mesh: Mesh) -> Iterator[None]:
    mesh.wait_hosts_up()
    yield
    remuda = mesh.cli()
    for instance in remuda.json("instance", "list"):
        remuda.run("instance", "delete", instance["uid"], "--yes")
    wait_for("nothing is left", lambda: not leftovers(mesh), timeout=60, status=lambda: leftovers(mesh))


def leftovers(mesh: Mesh) -> list[str]:
    """Sentences about what is left of any instance."""
    found = [key for prefix in PER_INSTANCE for key in mesh.etcd(prefix)]
    for host in mesh.lab.running_hosts():
        found += [f"{host}: domain {name} is {state}" for name, state in mesh.domains(host).items()]
        found += [f"{host}: QEMU {pid}" for pid in mesh.lab.host(host).qemu_pids()]
        instances = mesh.directory(host, "")
        found += [f"{host}: {path}" for path in instances.iterdir()]
    found += [str(path) for path in mesh.directory("", "", "shared").iterdir()]
    return found

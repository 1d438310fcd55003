"""Fixtures for end-to-end tests. A conftest.py takes them with ``from remuda_lab.testing import ...``.

``bare_lab`` has hosts and libvirt but no services; ``mesh`` has everything, and the guest image uploaded.
Labs of tests are tethered: they end with the test process however that ends, and what an older run left is
swept before a new lab starts. With REMUDA_LAB_KEEP set the
logs and disks of a mesh stay in its directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from remuda_lab.cluster import Cluster
from remuda_lab.cluster.settings import Options
from remuda_lab.guest import GuestImage, ensure_guest_image
from remuda_lab.lab import Lab
from remuda_lab.layout import lab_paths
from remuda_lab.mesh import Mesh
from remuda_lab.tether import tether


def require_root() -> None:
    """Skip the calling test, with the reason, where namespaces cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("the lab makes namespaces and bridges: run as root")


@contextmanager
def running_lab(name: str, *, hosts: int) -> Iterator[Lab]:
    """A lab of its own for the length of the block; everything is proven gone at the end."""
    require_root()
    # Test workers run side by side; each has a lab of its own.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    lab = Lab(lab_paths(f"test-{name}{'-' if worker else ''}{worker}"))
    lab.down()
    with tether() as read_end:
        lab.up(hosts=hosts, tether=read_end)
        try:
            yield lab
        finally:
            lab.down()


@pytest.fixture(scope="session")
def bare_lab() -> Iterator[Lab]:
    """Three hosts with libvirt, without any service of Remuda."""
    with running_lab("bare", hosts=3) as lab:
        yield lab


@contextmanager
def running_mesh(name: str, *, options: Options | None = None) -> Iterator[Mesh]:
    """A mesh of its own for the length of the block; everything is proven gone at the end."""
    require_root()
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    lab = Lab(lab_paths(f"test-{name}{'-' if worker else ''}{worker}"))
    lab.down()
    cluster = Cluster(lab)
    with tether() as read_end:
        cluster.up(tether=read_end, options=options)
        try:
            with cluster.client.channel() as channel:
                mesh = Mesh(cluster=cluster, image=ensure_guest_image(), channel=channel)
                mesh.upload_image()
                yield mesh
        finally:
            lab.down(keep_files=bool(os.environ.get("REMUDA_LAB_KEEP")))


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    """The whole cluster, three hosts, the guest image as ``guest``."""
    with running_mesh("mesh") as mesh:
        yield mesh


@pytest.fixture(scope="session")
def guest_image() -> GuestImage:
    """The project's guest, built when the cache has none."""
    return ensure_guest_image()

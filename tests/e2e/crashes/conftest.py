"""One lab and one guest for all crashes: a test takes the guest where it is, and leaves it running."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from remuda_lab.cluster.settings import Options
from remuda_lab.faults.scene import Scene, scene
from remuda_lab.faults.table import append
from remuda_lab.mesh import Guest, Mesh
from remuda_lab.testing import running_mesh

ROOT = Path(__file__).resolve().parents[3]
ROWS = Path(os.environ.get("REMUDA_FAULT_ROWS") or ROOT / "build" / "reliability.jsonl")
"""`make reliability` names the file from which the document is made."""

OPTIONS = Options(patience_seconds=8)
"""Enough to outlast a restarted agent; a debt is left when a host stays away longer."""

PASSED = pytest.StashKey[bool]()

HOSTS = ("host1", "host2", "host3")


class Wanderer:
    """The guest that all tests share, launched anew after a test that failed."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._guest: Guest | None = None

    def guest(self) -> Guest:
        if self._guest is None:
            self._guest = self._mesh.launch("wanderer", host="host1")
        return self._guest

    def end(self) -> None:
        if self._guest is not None:
            self._guest.delete()
            self._guest = None


@pytest.fixture(scope="package")
def mesh() -> Iterator[Mesh]:
    with running_mesh("crashes", options=OPTIONS) as mesh:
        yield mesh


@pytest.fixture(scope="package")
def wanderer(mesh: Mesh) -> Iterator[Wanderer]:
    shared = Wanderer(mesh)
    yield shared
    shared.end()


@pytest.fixture
def stage(mesh: Mesh, wanderer: Wanderer, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """The guest about to move. After a test that went well its row is written."""
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "say with @pytest.mark.fault what is broken, and where in the move"
    mesh.wait_hosts_up()
    guest = wanderer.guest()
    source = guest.host()
    target = HOSTS[(HOSTS.index(source) + 1) % len(HOSTS)]
    path = Path(request.node.path).relative_to(ROOT)
    with scene(
        mesh,
        guest,
        source=source,
        target=target,
        fault=mark.kwargs["what"],
        point=mark.kwargs["when"],
        test=f"{path}::{request.node.name}",
    ) as made:
        yield made
    # Before anything is asked of hosts, however the test has ended.
    heal(mesh)
    if not request.node.stash.get(PASSED, False):
        wanderer.end()
        return
    assert made.row is not None, "the test has to say how the migration ends"
    append(ROWS, made.row)


def heal(mesh: Mesh) -> None:
    """All hosts have power and their network."""
    for plan in mesh.lab.plans():
        if plan.name not in mesh.lab.running_hosts():
            mesh.lab.boot(plan.name)
        mesh.lab.heal(plan.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """For `stage`: how the test itself ended."""
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report

"""Preflight of a guest on shared storage, and of hosts that tell another software than they have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.moving_pb2 import MigrationCheck
from remuda_lab.mesh import Mesh

from tests.e2e.mesh import breaks
from tests.e2e.mesh.candidate import Candidate, names, rows_of
from tests.e2e.mesh.conftest import leaving_nothing

pytestmark = pytest.mark.root

FAIL, WARN = MigrationCheck.VERDICT_FAIL, MigrationCheck.VERDICT_WARN
GUESTS_MACHINE, OTHER_MACHINE = "pc-q35-7.2", "pc-q35-6.2"


@pytest.fixture(scope="module", autouse=True)
def nothing_left(mesh: Mesh) -> Iterator[None]:
    with leaving_nothing(mesh):
        yield


@pytest.fixture(scope="module")
def db(mesh: Mesh) -> Candidate:
    """On host1, with its disk on the pool that host1 and host2 share."""
    return Candidate(mesh=mesh, guest=mesh.launch("db", host="host1", pool="shared"))


def test_a_pool_that_only_says_that_it_is_shared_is_found(mesh: Mesh, db: Candidate) -> None:
    with breaks.another_pool(mesh, "host2", pool="shared"):
        row = db.fails("host2", "STORAGE")["STORAGE"]
        assert "a file written there was not seen at the source" in row.observed_target
        assert "a file written by one host is read by the other" in row.required
        assert "See that host2 has mounted" in row.fix
    row = db.passes("host2")["STORAGE"]
    assert "a file written there was read at the source" in row.observed_target
    assert db.check("host2")["host2"].kind == Migration.KIND_LIVE_SHARED


def test_a_shared_pool_that_is_full_is_a_failure_and_no_doubt(mesh: Mesh, db: Candidate) -> None:
    with breaks.full_pool(mesh, "host2", pool="shared"):
        row = db.fails("host2", "STORAGE")["STORAGE"]
        assert "no space left on device" in row.observed_target
        assert row.fix.startswith("Free space in pool 'shared'")
    db.passes("host2")


def test_a_host_without_the_pool_is_told_by_name_and_is_no_target(mesh: Mesh, db: Candidate) -> None:
    with db.untouched():
        rows = rows_of(db.check("host3")["host3"])
        assert names(rows, FAIL) == {"STORAGE"}
        assert rows["STORAGE"].observed_target == "there is no pool 'shared'"
        assert db.refused("host3").keys() == {("host3", "STORAGE")}
        everywhere = db.check()
    assert list(everywhere) == ["host2", "host3"]
    assert not everywhere["host3"].probed, "that is known without a probe"


def test_an_older_libvirt_and_a_cpu_that_lacks_something_are_found(mesh: Mesh, db: Candidate) -> None:
    with breaks.telling(mesh, host2={"libvirt_version": 8_000_000}):
        row = db.fails("host2", "LIBVIRT_VERSION")["LIBVIRT_VERSION"]
        assert row.observed_source.startswith("libvirt 9.0.0")
        assert row.observed_target.startswith("libvirt 8.0.0")
        assert "overridden for a lab" in row.observed_target
        assert row.fix.startswith("Upgrade libvirt on the target")
        # No wish makes an older one right.
        assert rows_of(db.check("host2", skew=True)["host2"])["LIBVIRT_VERSION"].verdict == FAIL
    with breaks.telling(mesh, host2={"cpu_missing_features": ["avx2", "sse4.2"]}):
        row = db.fails("host2", "CPU_COMPATIBLE")["CPU_COMPATIBLE"]
        assert "missing features: avx2, sse4.2" in row.observed_target
        assert "every feature of the guest's" in row.required
    db.passes("host2")


def test_a_newer_libvirt_is_refused_unless_it_is_wanted(mesh: Mesh, db: Candidate) -> None:
    with breaks.telling(mesh, host2={"libvirt_version": 10_000_000}):
        assert "allow_version_skew" in db.fails("host2", "LIBVIRT_VERSION")["LIBVIRT_VERSION"].fix
        rows = rows_of(db.check("host2", skew=True)["host2"])
        assert names(rows, FAIL) == set()
        assert rows["LIBVIRT_VERSION"].verdict == WARN
    with breaks.telling(mesh, host2={"machine_types": [OTHER_MACHINE]}):
        row = db.fails("host2", "LIBVIRT_VERSION")["LIBVIRT_VERSION"]
        assert GUESTS_MACHINE in row.observed_source
        assert f"no {GUESTS_MACHINE}" in row.observed_target
        assert row.fix == f"Take a host whose QEMU offers {GUESTS_MACHINE}."
    db.passes("host2")


def test_a_source_that_could_not_take_it_back_is_said_and_not_refused(mesh: Mesh, db: Candidate) -> None:
    with breaks.telling(mesh, host1={"cpu": "incompatible"}), db.untouched():
        rows = rows_of(db.check("host2")["host2"])
        assert names(rows, FAIL) == set()
        assert rows["CPU_COMPATIBLE"].verdict == WARN
        assert "a one-way move" in rows["CPU_COMPATIBLE"].observed_source
    db.passes("host2")

"""A guest that is checked and asked to move, and must be refused without having been touched."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from google.longrunning import operations_pb2
from remuda.compute.v1 import instance_pb2, moving_pb2
from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.moving_pb2 import MigrationCandidate, MigrationCheck
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.status import from_status
from remuda_core.testing.premise import ATTEMPTS
from remuda_lab.host_files import MIGRATION_PORTS
from remuda_lab.mesh import Guest, Mesh, unpack_metadata
from remuda_lab.waiting import wait_for

from tests.e2e.mesh.breaks import listening, probe_files

CHECK_SECONDS = 90.0
GOOD = (MigrationCheck.VERDICT_PASS, MigrationCheck.VERDICT_NOT_APPLICABLE)
REFUSING = (MigrationCheck.VERDICT_FAIL, MigrationCheck.VERDICT_UNKNOWN)

Rows = Mapping[str, MigrationCheck]
"""By condition, for example "STORAGE"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One guest, and what may become of it."""

    mesh: Mesh
    guest: Guest

    # -- asking ----------------------------------------------------------------------------------

    def check(self, to: str = "", *, bandwidth: int = 0, skew: bool = False) -> dict[str, MigrationCandidate]:
        """CheckMigration, by host name. Without a host: of every one."""
        request = moving_pb2.CheckMigrationRequest(
            name=self.guest.name,
            target_host=f"hosts/{self.mesh.host_uuid(to)}" if to else "",
            bandwidth_mib_s=bandwidth,
            allow_version_skew=skew,
        )
        answer = self.mesh.instances.CheckMigration(request, timeout=CHECK_SECONDS)
        assert self.mesh.host_name(answer.source_host) == self.guest.host()
        return {self.mesh.host_name(one.host): one for one in answer.candidates}

    def ask(self, to: str = "", *, validate_only: bool = False, **wishes: int) -> operations_pb2.Operation:
        """LiveMigrateInstance. Raises grpc.RpcError when it is not admitted."""
        request = moving_pb2.LiveMigrateInstanceRequest(
            name=self.guest.name,
            target_host=f"hosts/{self.mesh.host_uuid(to)}" if to else "",
            request_id=str(uuid.uuid4()),
            validate_only=validate_only,
            bandwidth_mib_s=wishes.get("bandwidth", 0),
        )
        return self.mesh.instances.LiveMigrateInstance(request, timeout=CHECK_SECONDS)

    # -- judging ---------------------------------------------------------------------------------

    def passes(self, to: str) -> Rows:
        """Nothing speaks against the host. How fast memory is written is the guest's affair."""
        rows = self.probed(to, unknown=set())
        bad = {name: check for name, check in rows.items() if check.verdict not in GOOD}
        assert bad.keys() <= {"CONVERGENCE"}, bad
        return rows

    def probed(self, to: str, *, unknown: set[str]) -> Rows:
        """The rows of a host, asked again while a crowded machine leaves the probe of another row than those
        `unknown` without an answer.
        """
        tries = [rows_of(self.check(to)[to])]
        while len(tries) < ATTEMPTS and not names(tries[-1], MigrationCheck.VERDICT_UNKNOWN) <= unknown:
            tries.append(rows_of(self.check(to)[to]))
        return tries[-1]

    def fails(self, to: str, *conditions: str, unknown: tuple[str, ...] = ()) -> Rows:
        """These rows FAIL, and those that depend on them are UNKNOWN; every other one holds. The move is
        refused for just these, and nothing was touched.
        """
        with self.untouched():
            rows = self.probed(to, unknown=set(unknown))
            assert names(rows, MigrationCheck.VERDICT_FAIL) == set(conditions), rows
            assert names(rows, MigrationCheck.VERDICT_UNKNOWN) == set(unknown), rows
            for name in conditions:
                # Operators see what is wrong, what is needed and what to do.
                assert rows[name].observed_source or rows[name].observed_target, name
                assert rows[name].required, name
                assert rows[name].fix, name
            violations = self.refused(to)
            assert violations.keys() == {(to, name) for name in (*conditions, *unknown)}, violations
            for name in conditions:
                assert violations[to, name].startswith(f"{to}: FAIL: ")
                assert rows[name].fix.rstrip(".") in violations[to, name]
        return rows

    def refused(self, to: str = "") -> Mapping[tuple[str, str], str]:
        """LiveMigrateInstance ends with PREFLIGHT_FAILED in its first step: its violations in words, by host
        and condition.
        """
        operation = self.ask(to)
        ended = self.mesh.wait_done(operation.name)
        error = from_status(ended.error)
        assert error.reason is Reason.PREFLIGHT_FAILED, ended.error
        metadata = unpack_metadata(ended)
        assert metadata.state == OperationMetadata.STATE_FAILED
        assert [step.name for step in metadata.steps] == ["preflight_passed"]
        assert self.mesh.migration_of(operation.name).state == Migration.STATE_FAILED
        return self.violations(error)

    def violations(self, error: RemudaError) -> Mapping[tuple[str, str], str]:
        found = {}
        for one in error.violations:
            host, _, condition = one.subject.rpartition("/")
            found[self.mesh.host_name(host), condition] = one.description
        return found

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Whatever is asked meanwhile: same record, same QEMU, its counter goes on, no trace elsewhere."""
        source = self.guest.host()
        before, pids = resting(self.guest.record()), self.mesh.lab.host(source).qemu_pids(self.guest.uid)
        inside = self.guest.view.state()
        yield
        assert resting(self.guest.record()) == before
        assert self.mesh.lab.host(source).qemu_pids(self.guest.uid) == pids
        after = self.guest.view.wait_tick(inside.memory_tick)
        assert (after.boot_nonce, after.boots) == (inside.boot_nonce, inside.boots)
        wait_for(
            "no probe is left", lambda: not self.left(source), timeout=60, status=lambda: self.left(source)
        )

    def left(self, source: str) -> list[str]:
        """What is there and should not be, on any host that runs."""
        found = []
        for host in self.mesh.lab.running_hosts():
            found += [f"{host} listens: {socket}" for socket in listening(self.mesh, host, MIGRATION_PORTS)]
            found += [str(path) for path in probe_files(self.mesh, host)]
            pool = self.guest.record().pool
            if host != source:
                found += [f"{host}: {one}" for one in self.mesh.traces(host, self.guest.uid, pool=pool)]
        return found


def rows_of(candidate: MigrationCandidate) -> Rows:
    assert candidate.probed
    prefix = "CONDITION_"
    rows = {
        MigrationCheck.Condition.Name(one.condition).removeprefix(prefix): one for one in candidate.checks
    }
    every = {name.removeprefix(prefix) for name, number in MigrationCheck.Condition.items() if number}
    assert rows.keys() == every, "with probes there is a row for every condition"
    return rows


def names(rows: Rows, verdict: MigrationCheck.Verdict.ValueType) -> set[str]:
    return {name for name, check in rows.items() if check.verdict == verdict}


def resting(record: instance_pb2.Instance) -> instance_pb2.Instance:
    """Without what an event changes: every operation leaves one, also one that is refused."""
    found = instance_pb2.Instance()
    found.CopyFrom(record)
    for name in ("etag", "update_time"):
        found.ClearField(name)
    found.observed.ClearField("observe_time")
    return found

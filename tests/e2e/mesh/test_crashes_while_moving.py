"""Services that die while a guest moves: the move goes on, and exactly one copy of the guest runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from google.longrunning import operations_pb2
from remuda.compute.v1 import operation_pb2
from remuda_lab.demo_proof import Before, check_moved
from remuda_lab.mesh import Guest, Mesh, unpack_metadata
from remuda_lab.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

SLOW_MIB_S = 5
"""The guest's memory takes about twenty seconds at this rate: several lease TTLs."""
WATCH_SECONDS = 180


class Watcher:
    """One WatchOperation stream, opened once and never again."""

    def __init__(self, mesh: Mesh, operation: str) -> None:
        self.messages: list[operations_pb2.Operation] = []
        self.failure: Exception | None = None
        self._call = mesh.watches.WatchOperation(
            operation_pb2.WatchOperationRequest(name=operation), timeout=WATCH_SECONDS
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for message in self._call:
                self.messages.append(message.operation)
        except Exception as error:
            self.failure = error

    def wait_end(self, timeout: float) -> operations_pb2.Operation:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"the stream goes on: {self.messages[-1:]}"
        assert self.failure is None, self.failure
        return self.messages[-1]

    def close(self) -> None:
        self._call.cancel()
        self._thread.join(10)


@pytest.fixture
def moving(mesh: Mesh) -> Iterator[tuple[Guest, Before, str, Watcher]]:
    """A guest that is slowly on its way from host1 to host3, with bytes copied already."""
    guest = mesh.launch("web-1", host="host1")
    before = Before.of(guest)
    operation = mesh.live_migrate(guest, to="host3", bandwidth=SLOW_MIB_S).name
    watcher = Watcher(mesh, operation)
    try:
        mesh.wait_moving(operation)
        yield guest, before, operation, watcher
    finally:
        watcher.close()


def test_the_leading_scheduler_is_killed_and_the_next_one_joins_the_job(
    mesh: Mesh, moving: tuple[Guest, Before, str, Watcher]
) -> None:
    guest, before, operation, watcher = moving
    leader = mesh.leader()
    with killed(mesh, leader):
        seen = len(watcher.messages)
        ended = watcher.wait_end(WATCH_SECONDS)
        assert mesh.leader() != leader
    assert ended.done
    assert not ended.HasField("error"), str(ended.error)
    assert unpack_metadata(ended).state == operation_pb2.OperationMetadata.STATE_DONE
    assert len(watcher.messages) > seen + 1, "progress went on after the leader's death"
    check_moved(mesh, guest, before, source="host1", target="host3", pool="local")
    assert mesh.migration_of(operation).downtime_ms > 0


@pytest.mark.parametrize("host", ["host1", "host3"])
def test_the_agent_of_either_host_is_killed_and_finds_its_guest_again(
    mesh: Mesh, moving: tuple[Guest, Before, str, Watcher], host: str
) -> None:
    guest, before, operation, watcher = moving
    mesh.cluster.restart(host)
    ended = watcher.wait_end(WATCH_SECONDS)
    assert not ended.HasField("error"), str(ended.error)
    check_moved(mesh, guest, before, source="host1", target="host3", pool="local")
    assert mesh.metadata(operation).state == operation_pb2.OperationMetadata.STATE_DONE


def test_the_api_is_killed_and_the_command_line_goes_on_watching(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host1")
    before = Before.of(guest)
    command = mesh.cli().start(
        "instance", "live-migrate", "web-1", "--to", "host3", "--bandwidth", str(SLOW_MIB_S)
    )
    try:
        operation = wait_for("the move is admitted", lambda: guest.record().operation, timeout=60)
        mesh.cluster.restart("api")
        mesh.wait_done(operation, timeout=WATCH_SECONDS)
        _, words = command.communicate(timeout=60)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 0, words
    assert "moved from host1 to host3" in words
    check_moved(mesh, guest, before, source="host1", target="host3", pool="local")


@contextmanager
def killed(mesh: Mesh, scheduler: str) -> Iterator[None]:
    """SIGKILLed for the length of the block, started again afterwards."""
    mesh.cluster.kill(scheduler)
    try:
        yield
    finally:
        mesh.cluster.start(scheduler)

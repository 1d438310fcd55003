"""Moves that wait for their turn, and what can be done to one before anything is copied."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.migration_pb2 import (
    CommandResult,
    GiveUp,
    Migration,
    MigrationProgress,
    SetBandwidth,
)
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationMetadata, QueueProgress
from remuda_lab.mesh import Guest, Mesh
from remuda_lab.waiting import wait_for

from tests.e2e.mesh.steering import PATIENCE, RESTLESS, move, queued, refused, steering

pytestmark = pytest.mark.root

PREPARING = MigrationProgress.PHASE_PREPARING
MAINTENANCE = LiveMigrateInstanceRequest.PRIORITY_MAINTENANCE
BASES = "base"
SLOW = 1
"""MiB/s: a restless guest gets nowhere."""


@pytest.fixture
def one_at_a_time(mesh: Mesh) -> Iterator[None]:
    """The schedulers let one guest at a time leave a host."""
    files = [mesh.lab.paths.config / f"{name}.toml" for name in ("scheduler-1", "scheduler-2")]
    before = [file.read_text() for file in files]
    try:
        for file, text in zip(files, before, strict=True):
            file.write_text(f"{text}\n[migration_limits]\noutgoing_per_host = 1\n")
        restart_schedulers(mesh)
        yield
    finally:
        for file, text in zip(files, before, strict=True):
            file.write_text(text)
        restart_schedulers(mesh)


def restart_schedulers(mesh: Mesh) -> None:
    for name in ("scheduler-1", "scheduler-2"):
        # Told to end, a leader resigns: nobody waits for its lease.
        mesh.cluster.kill(name, signal.SIGTERM)
        mesh.cluster.start(name)
    mesh.wait_hosts_up()


@contextmanager
def without_images(mesh: Mesh, host: str) -> Iterator[None]:
    """The host has no base image of its own, and whoever asks for one waits for its bytes."""
    for base in (mesh.lab.paths.host(host).local_pool / BASES).iterdir():
        base.unlink()
    mesh.cluster.kill("image-store", signal.SIGSTOP)
    try:
        yield
    finally:
        mesh.cluster.kill("image-store", signal.SIGCONT)


def waits(mesh: Mesh, operation: str, position: int) -> None:
    def there() -> QueueProgress | None:
        place = queued(mesh, operation)
        return place if place.position == position else None

    what = f"{operation} is number {position} in the queue"
    seen = wait_for(what, there, timeout=PATIENCE, status=lambda: queued(mesh, operation))
    assert (seen.limit, seen.allowed) == (f"outgoing of hosts/{mesh.host_uuid('host1')}", 1)


def waiting(mesh: Mesh) -> list[str]:
    """The gauge, as the leader shows it."""
    lines = mesh.cluster.metrics(mesh.leader()).splitlines()
    return [line for line in lines if line.startswith("remuda_migrations_waiting{")]


def shows(mesh: Mesh, expected: list[str]) -> None:
    """The gauge counts what the leader's watches have brought, a moment after etcd."""
    wait_for("the gauge", lambda: waiting(mesh) == expected, timeout=60, status=lambda: waiting(mesh))


def stayed(mesh: Mesh, guest: Guest, operation: str) -> None:
    """Its move was cancelled: it runs at the source, and nothing of it is elsewhere."""
    mesh.wait_done(operation)
    assert mesh.metadata(operation).state == OperationMetadata.STATE_CANCELLED
    assert mesh.domains("host1")[guest.uid] == "running"
    assert [mesh.traces(host, guest.uid) for host in ("host2", "host3")] == [[], []]
    record = guest.record()
    assert (record.state, record.operation, guest.host()) == (Instance.STATE_RUNNING, "", "host1")


def test_a_queue_is_seen_obeys_priorities_and_lets_go_in_every_phase(mesh: Mesh, one_at_a_time: None) -> None:
    with ThreadPoolExecutor() as pool:
        first, drained, asked = pool.map(
            lambda name: mesh.launch(name, host="host1", user_data=RESTLESS if name == "first" else ""),
            ("first", "drained", "asked"),
        )
    before = {guest: guest.view.state() for guest in (first, drained, asked)}
    moving = move(mesh, first, "host2", bandwidth_mib_s=SLOW, max_downtime_ms=1)
    mesh.wait_moving(moving)
    drain = move(mesh, drained, "host3", priority=MAINTENANCE)
    waits(mesh, drain, 1)
    user = move(mesh, asked, "host3")
    waits(mesh, user, 1)
    waits(mesh, drain, 2)
    limit = f'{{limit="outgoing of hosts/{mesh.host_uuid("host1")}"}}'
    shows(mesh, [f"remuda_migrations_waiting{limit} 2.0"])

    # While it waits there is no job, and a cancel is all that it takes.
    words = mesh.cli().start("migration", "set-bandwidth", "asked", "5")
    assert (words.wait(120), "has not begun" in words.communicate()[1]) == (4, True)

    with without_images(mesh, "host3"):
        mesh.cli().run("migration", "cancel", "first")
        stayed(mesh, first, moving)
        # The user's goes first, although it was admitted later; its target is being prepared.
        wait_for(
            "a target is prepared", lambda: mesh.metadata(user).phase == "target_prepared", timeout=PATIENCE
        )
        waits(mesh, drain, 1)
        again = move(mesh, first, "host2")
        waits(mesh, again, 1)
        waits(mesh, drain, 2)
        mesh.cli().run("migration", "cancel", "first")
        stayed(mesh, first, again)
        with steering(mesh, user) as client:
            early = client.ask("early", set_bandwidth=SetBandwidth(mib_per_second=5))
            refused(early, PREPARING)
            stopped = client.ask("stop", cancel=GiveUp())
            assert stopped.effect == CommandResult.EFFECT_APPLIED, stopped
            assert client.until_ended().state == Migration.STATE_CANCELLED
        stayed(mesh, asked, user)
    # Whoever waits is not forgotten over all this.
    assert not mesh.wait_done(drain).HasField("error")
    assert drained.host() == "host3"
    shows(mesh, [])
    for guest, state in before.items():
        assert guest.view.wait_tick(state.memory_tick).boot_nonce == state.boot_nonce
    listed = json.loads(mesh.cli().run("migration", "list", "asked", "-o", "json"))
    assert [one["state"] for one in listed] == ["STATE_CANCELLED"]

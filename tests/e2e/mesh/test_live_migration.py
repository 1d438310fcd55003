"""Guests that move between hosts without stopping, judged from inside the guest and from both hosts."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.migration_pb2 import Migration
from remuda_lab.demo_proof import Before, check_moved
from remuda_lab.faults.move import Move
from remuda_lab.faults.scene import SLOW_MIB_S
from remuda_lab.mesh import Guest, Mesh
from remuda_lab.pinger import Pinger
from remuda_lab.waiting import wait_for

pytestmark = pytest.mark.root

TIMELINE = ["JOB_STARTED", "SOURCE_PAUSED", "TARGET_RESUMED", "SOURCE_CLEANED", "TARGET_DEFINED"]


def test_block_migration_moves_memory_and_disk_to_the_named_host(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host1")
    before = Before.of(guest)
    with Pinger(mesh.lab.fabric().init, guest.address, interval=0.05) as pinger:
        pinger.wait_answer(timeout=60)
        operation = mesh.live_migrate(guest, to="host3")
        assert not mesh.wait_done(operation.name).HasField("error")
        pinger.wait_answer(timeout=60)
        report = pinger.report()
    check_moved(mesh, guest, before, source="host1", target="host3", pool="local")
    record = mesh.migration_of(operation.name)
    assert (record.kind, record.state) == (Migration.KIND_LIVE_BLOCK, Migration.STATE_DONE)
    assert (mesh.host_name(record.source_host), mesh.host_name(record.target_host)) == ("host1", "host3")
    # No pause of the whole copy; how long one may be is the machine's affair.
    assert 0 < record.downtime_ms < 15_000
    assert record.disk_bytes > 0
    assert record.memory_bytes > 0
    assert record.guest_health == Migration.GUEST_HEALTH_OK
    assert [one.type for one in record.timeline] == TIMELINE
    assert report.longest_gap_seconds < 15, str(report)
    assert "persistent" in _persistence(mesh, "host3", guest)


def test_shared_migration_copies_no_disk_and_finds_the_only_other_host_of_the_pool(mesh: Mesh) -> None:
    guest = mesh.launch("db-1", host="host1", pool="shared")
    before = Before.of(guest)
    operation = mesh.live_migrate(guest)
    assert not mesh.wait_done(operation.name).HasField("error")
    check_moved(mesh, guest, before, source="host1", target="host2", pool="shared")
    record = mesh.migration_of(operation.name)
    assert record.kind == Migration.KIND_LIVE_SHARED
    assert record.disk_bytes == 0
    verdicts = {one.display_name: one for one in mesh.metadata(operation.name).placement.hosts}
    assert verdicts["host2"].eligible
    assert not verdicts["host3"].eligible
    assert "shared" in verdicts["host3"].reason


def test_without_a_named_target_the_scheduler_chooses_and_a_wrong_source_is_refused(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host2")
    wrong = mesh.cli().start("instance", "live-migrate", "web-1", "--from", "host1")
    _, words = wrong.communicate(timeout=90)
    assert wrong.returncode != 0
    assert "SOURCE_HOST_MISMATCH" in words
    before = Before.of(guest)
    lines = mesh.cli().json_lines("instance", "live-migrate", "web-1", "--from", "host2")
    target = guest.host()
    assert target in ("host1", "host3")
    check_moved(mesh, guest, before, source="host2", target=target, pool="local")
    shown = [line["operation"]["metadata"].get("progress", {}).get("percent", 0) for line in lines]
    assert lines[-1]["operation"]["done"]
    assert shown == sorted(shown), "percent never falls"


def test_a_paused_guest_is_still_paused_after_the_move(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host1")
    guest.view.wait_tick(2)
    mesh.lab.host("host1").virsh("suspend", guest.uid)
    guest.wait_state(Instance.STATE_PAUSED)
    operation = mesh.live_migrate(guest, to="host3")
    ended = mesh.wait_done(operation.name)
    assert not ended.HasField("error"), str(ended.error)
    assert mesh.domains("host3") == {guest.uid: "paused"}
    assert mesh.traces("host1", guest.uid) == []
    assert guest.record().state == Instance.STATE_PAUSED
    mesh.lab.host("host3").virsh("resume", guest.uid)
    guest.wait_state(Instance.STATE_RUNNING)
    state = guest.view.wait_up()
    assert state.boots == 1


def test_cancel_in_the_middle_leaves_the_guest_at_the_source_and_nothing_at_the_target(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host1")
    before = guest.view.wait_tick(1)
    operation = mesh.live_migrate(guest, to="host3", bandwidth=SLOW_MIB_S)
    mesh.wait_moving(operation.name)
    mesh.cli().run("operation", "cancel", operation.name.rpartition("/")[2])
    assert mesh.traces("host3", guest.uid) == []
    assert mesh.domains("host1") == {guest.uid: "running"}
    record = guest.record()
    assert (record.state, record.operation, record.epoch) == (Instance.STATE_RUNNING, "", 1)
    assert mesh.migration_of(operation.name).state == Migration.STATE_CANCELLED
    after = guest.view.wait_tick(before.memory_tick)
    assert after.boot_nonce == before.boot_nonce
    # The instance is free again: the same move, without the brake, succeeds.
    again = mesh.live_migrate(guest, to="host3")
    assert not mesh.wait_done(again.name).HasField("error")
    guest.view.wait_tick(after.memory_tick)


def test_of_two_conflicting_requests_one_wins_and_the_other_is_told_which(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host1")
    winner = mesh.live_migrate(guest, to="host3", bandwidth=SLOW_MIB_S)
    with closing(Move(mesh, guest, winner.name, source="host1", target="host3")) as move:
        loser = mesh.cli().start("instance", "stop", "web-1", "--force", "-o", "json")
        _, words = loser.communicate(timeout=90)
        assert loser.returncode == 4, words
        assert "INSTANCE_BUSY" in words
        assert winner.name in words
        move.wait_memory()
        move.hasten()
    assert not mesh.wait_done(winner.name).HasField("error")
    assert guest.host() == "host3"
    assert guest.view.wait_up().boots == 1


def test_the_timeline_and_the_metrics_tell_of_a_move(mesh: Mesh) -> None:
    guest = mesh.launch("db-1", host="host2", pool="shared")
    counted = _migrations(mesh)
    operation = mesh.live_migrate(guest, to="host1")
    mesh.wait_done(operation.name)
    events = mesh.cli().json("instance", "events", "db-1")
    assert [event["type"] for event in events] == ["OPERATION_DONE", *TIMELINE, "OPERATION_DONE"]
    # Counted when the end is on record.
    wait_for("it is counted", lambda: _migrations(mesh) == counted + 1, timeout=60)
    assert (
        json.loads(mesh.cli().run("migration", "list", "db-1", "-o", "json"))[0]["operation"]
        == operation.name
    )


def _migrations(mesh: Mesh) -> float:
    """What the leader has counted as done."""
    lines = mesh.cluster.metrics(mesh.leader()).splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("remuda_migrations_total{") and 'result="done"' in line
    )


def _persistence(mesh: Mesh, host: str, guest: Guest) -> str:
    info = mesh.lab.host(host).virsh("dominfo", guest.uid)
    words = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    return "persistent" if words["Persistent"].strip() == "yes" else "transient"

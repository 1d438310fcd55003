"""Hosts that cannot be reached, or have lost power, in the middle of a move."""

from __future__ import annotations

import pytest
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_lab.faults.freezing import libvirtd
from remuda_lab.faults.network import arrived_unheard
from remuda_lab.faults.scene import Scene
from remuda_lab.mesh import Mesh
from remuda_lab.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

WAITING_FOR_HOST = OperationMetadata.STATE_WAITING_FOR_HOST
WAITING_FOR_OPERATOR = OperationMetadata.STATE_WAITING_FOR_OPERATOR


@pytest.mark.fault(what="management network of the source cut, healed", when="memory phase")
def test_the_source_is_cut_off_and_the_operation_waits_for_it_and_moves_the_guest_then(
    mesh: Mesh, stage: Scene
) -> None:
    move = stage.begin(bandwidth=5)
    move.wait_memory()
    stage.struck()
    mesh.lab.cut(stage.source)
    move.wait_state(WAITING_FOR_HOST)
    wait_job_over(mesh, stage.source)
    mesh.lab.heal(stage.source)
    stage.repaired()
    # Nobody has heard how the first job ended, and the guest runs where it was: begun anew.
    stage.ended(move, result="DONE", outcome="MOVED", at="target")
    assert move.outcomes() == ["STAYED", "WAIT", "STAYED", "MOVED"]


@pytest.mark.fault(what="management network of the target cut, healed after the end", when="memory phase")
def test_the_target_is_cut_off_and_owes_its_clean_up(mesh: Mesh, stage: Scene) -> None:
    move = stage.begin()
    move.wait_memory()
    stage.struck()
    mesh.lab.cut(stage.target)
    move.wait_end()
    assert mesh.etcd("debts/"), "the target could not be asked"
    mesh.lab.heal(stage.target)
    stage.ended(move, result="MIGRATION_FAILED", outcome="STAYED", at="source")


@pytest.mark.fault(what="management networks of both hosts cut, healed", when="memory phase")
def test_both_hosts_are_cut_off_and_nothing_is_decided_before_they_answer(mesh: Mesh, stage: Scene) -> None:
    move = stage.begin(bandwidth=5)
    move.wait_memory()
    stage.struck()
    mesh.lab.cut(stage.target)
    mesh.lab.cut(stage.source)
    unseen = ("WAIT", "UNREACHABLE", "UNREACHABLE")
    wait_for("no host is seen", lambda: unseen in [one.said for one in move.judgements()], timeout=120)
    move.wait_state(WAITING_FOR_HOST)
    wait_job_over(mesh, stage.source)
    mesh.lab.heal(stage.target)
    mesh.lab.heal(stage.source)
    stage.repaired()
    stage.ended(move, result="DONE", outcome="MOVED", at="target")


@pytest.mark.fault(what="target cut off, source libvirtd SIGKILL, healed", when="just switched over")
def test_a_source_that_stands_still_is_not_resumed_while_the_target_is_not_seen(
    mesh: Mesh, stage: Scene
) -> None:
    with arrived_unheard(mesh, stage) as move:
        mesh.lab.cut(stage.target)
        libvirtd(mesh.lab, stage.source).kill()
        move.wait_state(WAITING_FOR_HOST)
        wait_for("the source is seen", lambda: paused_and_unseen(move.judgements()[-1].said), timeout=120)
        assert mesh.domains(stage.source) == {stage.guest.uid: "paused"}
    mesh.lab.heal(stage.target)
    stage.repaired()
    stage.ended(move, result="DONE", outcome="MOVED", at="target")


@pytest.mark.fault(what="the target's word is lost, both copies run", when="just switched over")
def test_two_copies_that_run_are_held_apart_until_an_operator_ends_one(mesh: Mesh, stage: Scene) -> None:
    with arrived_unheard(mesh, stage) as move:
        # Unheard, the source's libvirtd lets its guest go on.
        move.wait_state(WAITING_FOR_OPERATOR)
    uid = stage.guest.uid
    wait_for("the second copy is paused", lambda: mesh.domains(stage.target) == {uid: "paused"}, timeout=120)
    assert mesh.domains(stage.source) == {uid: "running"}
    events = mesh.cli().json("instance", "events", uid)
    assert "MIGRATION_SPLIT" in [event["type"] for event in events]
    mesh.lab.host(stage.target).virsh("destroy", uid)
    stage.repaired()
    stage.ended(move, result="MIGRATION_FAILED", outcome="STAYED", at="source", most_copies=2)
    assert "SPLIT" in move.outcomes()


@pytest.mark.fault(what="source loses power, booted after the end", when="just switched over")
def test_the_source_loses_power_when_the_guest_has_arrived_and_pays_later(mesh: Mesh, stage: Scene) -> None:
    with arrived_unheard(mesh, stage) as move:
        mesh.lab.power_fail(stage.source)
        move.wait_end()
        assert mesh.etcd("debts/"), "the source could not be asked"
    mesh.lab.boot(stage.source)
    stage.ended(move, result="DONE", outcome="MOVED", at="target")
    moved = [one for one in move.judgements() if one.outcome == "MOVED"]
    assert moved[0].source == "UNREACHABLE"


@pytest.mark.fault(what="target loses power, booted after the end", when="memory phase")
def test_the_target_loses_power_and_the_guest_stays(mesh: Mesh, stage: Scene) -> None:
    move = stage.begin()
    move.wait_memory()
    stage.struck()
    mesh.lab.power_fail(stage.target)
    move.wait_end()
    assert mesh.etcd("debts/"), "the target could not be asked"
    mesh.lab.boot(stage.target)
    stage.ended(move, result="MIGRATION_FAILED", outcome="STAYED", at="source")


@pytest.mark.fault(what="source loses power, booted", when="memory phase")
def test_the_source_loses_power_and_the_guest_is_started_anew_when_it_is_back(
    mesh: Mesh, stage: Scene
) -> None:
    move = stage.begin()
    move.wait_memory()
    stage.struck()
    mesh.lab.power_fail(stage.source)
    move.wait_state(WAITING_FOR_HOST)
    mesh.lab.boot(stage.source)
    stage.repaired()
    stage.ended(move, result="MIGRATION_FAILED", outcome="GUEST_LOST", at="source", memory_kept=False)


def wait_job_over(mesh: Mesh, host: str) -> None:
    """Until the host's agent has no migration any more; it tells nobody while it is cut off."""
    jobs = mesh.lab.paths.host(host).state / "migrations"
    wait_for(
        f"{host} has given its job up",
        lambda: not any(jobs.iterdir()),
        timeout=120,
        status=lambda: list(jobs.iterdir()),
    )


def paused_and_unseen(said: tuple[str, str, str]) -> bool:
    outcome, source, target = said
    return (outcome, target) == ("WAIT", "UNREACHABLE") and source.startswith("PAUSED, MIGRATION, job NONE")

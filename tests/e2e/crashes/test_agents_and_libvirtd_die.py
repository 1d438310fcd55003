"""What holds a move together on a host dies in the middle of it: the agent, or libvirtd. QEMU lives on."""

from __future__ import annotations

import pytest
from remuda_lab.faults.freezing import libvirtd
from remuda_lab.faults.network import arrived_unheard
from remuda_lab.faults.scene import Scene
from remuda_lab.mesh import Mesh
from remuda_lab.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.mark.fault(what="source agent SIGKILL", when="memory phase")
def test_the_agent_of_the_source_is_killed_and_takes_up_the_job_again(mesh: Mesh, stage: Scene) -> None:
    move = stage.begin()
    move.wait_memory()
    stage.struck()
    mesh.cluster.restart(stage.source)
    wait_for("the leader joins the job again", lambda: "JOIN" in move.outcomes(), timeout=120)
    move.hasten()
    stage.ended(move, result="DONE", outcome="MOVED", at="target")


@pytest.mark.fault(what="target agent SIGKILL", when="memory phase")
def test_the_agent_of_the_target_is_killed_and_finds_the_guest_when_it_is_back(
    mesh: Mesh, stage: Scene
) -> None:
    move = stage.begin()
    move.wait_memory()
    stage.struck()
    mesh.cluster.kill(stage.target)
    move.hasten()
    wait_for("the guest has arrived", lambda: "running" in mesh.domains(stage.target).values(), timeout=120)
    mesh.cluster.start(stage.target)
    stage.ended(move, result="DONE", outcome="MOVED", at="target")


@pytest.mark.fault(what="source libvirtd SIGKILL", when="memory phase")
def test_libvirtd_of_the_source_is_killed_and_the_guest_stays(mesh: Mesh, stage: Scene) -> None:
    move = stage.begin()
    move.wait_memory()
    stage.struck()
    libvirtd(mesh.lab, stage.source).kill()
    stage.ended(move, result="MIGRATION_FAILED", outcome="STAYED", at="source")


@pytest.mark.fault(what="target libvirtd SIGKILL", when="memory phase")
def test_libvirtd_of_the_target_is_killed_and_the_guest_stays(mesh: Mesh, stage: Scene) -> None:
    move = stage.begin()
    move.wait_memory()
    stage.struck()
    libvirtd(mesh.lab, stage.target).kill()
    stage.ended(move, result="MIGRATION_FAILED", outcome="STAYED", at="source")


@pytest.mark.fault(what="source libvirtd SIGKILL", when="switched over, the target's word not heard")
def test_libvirtd_of_the_source_is_killed_before_it_hears_that_the_guest_has_arrived(
    mesh: Mesh, stage: Scene
) -> None:
    with arrived_unheard(mesh, stage) as move:
        libvirtd(mesh.lab, stage.source).kill()
        stage.ended(move, result="DONE", outcome="MOVED", at="target")
    assert any(one.source.startswith("PAUSED") for one in move.judgements() if one.outcome == "MOVED")

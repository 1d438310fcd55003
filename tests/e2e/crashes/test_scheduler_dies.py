"""The leading scheduler dies or stands still in the middle of a move: the next one goes on with it."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from remuda.agent.v1.agent_pb2 import RemoveInstance, RunStepRequest
from remuda.agent.v1.common_pb2 import LeaderRef, StepKey
from remuda_core.errors import Reason, RemudaError
from remuda_core.testing.premise import set_up_again
from remuda_lab.faults.freezing import frozen, killed
from remuda_lab.faults.move import Move
from remuda_lab.faults.orders import give_order
from remuda_lab.faults.scene import SLOW_MIB_S, Scene
from remuda_lab.mesh import Mesh
from remuda_lab.waiting import wait_for

CONTINUE = signal.SIGCONT

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.mark.fault(what="scheduler leader SIGKILL", when="the target fetches the base image")
def test_the_leader_is_killed_while_the_target_prepares(mesh: Mesh, stage: Scene) -> None:
    forget_base_images(mesh, stage.target)
    store, leader = mesh.cluster.pid("image-store"), mesh.leader()
    move = stage.begin(bandwidth=0)
    # Not before: preflight asks whether the image can be had.
    move.wait_step_done("preflight_passed")
    with frozen(store):
        move.wait_step("target_prepared")
        with killed(mesh, leader):
            stage.struck()
            assert move.open_step() == "target_prepared"
            assert mesh.leader() != leader
            store.kill(CONTINUE)
            stage.ended(move, result="DONE", outcome="MOVED", at="target")


@pytest.mark.fault(what="scheduler leader SIGKILL", when="memory phase")
def test_the_leader_is_killed_in_the_memory_phase_and_the_next_one_joins_the_job(
    mesh: Mesh, stage: Scene
) -> None:
    move = stage.begin()
    move.wait_memory()
    leader = mesh.leader()
    with killed(mesh, leader):
        stage.struck()
        seen = len(move.messages)
        assert mesh.leader() != leader
        wait_for("the next leader follows the job", lambda: "JOIN" in move.outcomes(), timeout=120)
        wait_for("progress goes on", lambda: len(move.messages) > seen + 1, timeout=120)
        move.hasten()
        stage.ended(move, result="DONE", outcome="MOVED", at="target")
    assert mesh.migration_of(move.operation).downtime_ms > 0


@pytest.mark.fault(what="scheduler leader SIGKILL", when="switched over, ownership not moved")
@set_up_again
def test_the_leader_is_killed_before_it_knows_that_the_guest_has_arrived(mesh: Mesh, stage: Scene) -> None:
    move = stage.begin()
    move.wait_memory()
    leader = mesh.leader()
    # The job is peer to peer: it ends without the source's agent, and nobody tells the leader, who asks the
    # target when the source has been silent for some seconds.
    with frozen(mesh.cluster.pid(stage.source)):
        move.hasten()
        wait_for("the guest runs at the target", lambda: runs(mesh, stage.target), timeout=120)
        with killed(mesh, leader):
            stage.struck()
            in_time = move.open_step() == "guest_moved"
            mesh.cluster.pid(stage.source).kill(CONTINUE)
            if not in_time:
                stage.too_late(move, "the leader had heard of it before it died")
            stage.ended(move, result="DONE", outcome="MOVED", at="target")


@pytest.mark.fault(what="scheduler leader SIGKILL", when="post-work: the source is being released")
def test_the_leader_is_killed_while_the_source_is_released(mesh: Mesh, stage: Scene) -> None:
    with source_being_released(mesh, stage) as move:
        leader = mesh.leader()
        with killed(mesh, leader):
            stage.struck()
            assert move.open_step() == "source_released"
            assert stage.guest.host() == stage.target
            mesh.cluster.start(stage.source)
            stage.ended(move, result="DONE", outcome="MOVED", at="target")


@pytest.mark.fault(
    what="scheduler leader SIGSTOP, another takes over, SIGCONT",
    when="inside source_released, which destroys",
)
def test_a_leader_that_stood_still_in_a_destructive_step_is_refused_when_it_goes_on(
    mesh: Mesh, stage: Scene
) -> None:
    with source_being_released(mesh, stage) as move:
        leader = mesh.leader()
        old = acknowledged(mesh, stage.target)
        with frozen(mesh.cluster.pid(leader)):
            stage.struck()
            assert move.open_step() == "source_released"
            mesh.cluster.start(stage.source)
            move.wait_end()
        stage.ended(move, result="DONE", outcome="MOVED", at="target")
    wait_for("the old leader has stepped down", lambda: not leads(mesh, leader), timeout=120)
    assert mesh.leader() != leader
    # What it may have had on its way, however late: refused, and after the agents' own restart too.
    for host in (stage.source, stage.target):
        assert acknowledged(mesh, host).epoch > old.epoch
        assert refusal(mesh, host, destruction(stage, host, old)) is Reason.STALE_LEADER
        mesh.cluster.restart(host)
        assert refusal(mesh, host, destruction(stage, host, old)) is Reason.STALE_LEADER
    assert mesh.domains(stage.target) == {stage.guest.uid: "running"}


@pytest.mark.fault(what="api SIGKILL", when="memory phase")
def test_the_api_is_killed_and_the_command_line_goes_on_watching(mesh: Mesh, stage: Scene) -> None:
    words = (
        "instance",
        "live-migrate",
        stage.guest.uid,
        "--to",
        stage.target,
        "--bandwidth",
        str(SLOW_MIB_S),
    )
    command = mesh.cli().start(*words)
    try:
        operation = wait_for("the move is admitted", lambda: stage.guest.record().operation, timeout=120)
        stage.follow(operation).wait_memory()
        stage.struck()
        mesh.cluster.restart("api")
        move = stage.follow(operation)
        move.wait_memory()
        move.hasten()
        stage.ended(move, result="DONE", outcome="MOVED", at="target")
        _, said = command.communicate(timeout=120)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 0, said
    assert f"moved from {stage.source} to {stage.target}" in said


@contextmanager
def source_being_released(mesh: Mesh, stage: Scene) -> Iterator[Move]:
    """The guest has moved, by the target's evidence alone; the source's agent is dead, so that the step which
    undefines and deletes there stays open.
    """
    move = stage.begin()
    move.wait_memory()
    mesh.cluster.kill(stage.source)
    try:
        move.hasten()
        move.wait_step("source_released")
        yield move
    finally:
        if not mesh.cluster.is_running(stage.source):
            mesh.cluster.start(stage.source)


def leads(mesh: Mesh, scheduler: str) -> bool:
    return "\nremuda_leader 1.0\n" in mesh.cluster.metrics(scheduler)


def acknowledged(mesh: Mesh, host: str) -> LeaderRef:
    """The newest leader that a host's agent has on its disk."""
    return LeaderRef.FromString((mesh.lab.paths.host(host).state / "leader").read_bytes())


def destruction(stage: Scene, host: str, leader: LeaderRef) -> RunStepRequest:
    """The order to remove the guest from a host, in the name of `leader`."""
    key = StepKey(
        operation_id=str(uuid.uuid4()),
        step="target_removed",
        direction=StepKey.DIRECTION_DO,
        instance_id=stage.guest.uid,
        epoch=1000,
        leader=leader,
    )
    return RunStepRequest(key=key, remove_instance=RemoveInstance(pool="local"))


def refusal(mesh: Mesh, host: str, order: RunStepRequest) -> Reason | None:
    """Why the host's agent refuses an order that a scheduler gives."""
    try:
        give_order(mesh, host, order)
    except RemudaError as error:
        return error.reason
    return None


def runs(mesh: Mesh, host: str) -> bool:
    return "running" in mesh.domains(host).values()


def forget_base_images(mesh: Mesh, host: str) -> None:
    """What the host has fetched; no guest of it may be on the host."""
    for pool in ("local", "shared"):
        bases = mesh.directory(host, "", pool).parent / "base"
        for path in bases.iterdir() if bases.exists() else ():
            path.unlink()

"""QEMU dies on one side of a move, the guest powers itself off, or the target has no room for its disk."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from remuda.compute.v1.instance_pb2 import Instance
from remuda_lab.faults.scene import Scene
from remuda_lab.layout import LOCAL_POOL
from remuda_lab.mesh import Guest, Mesh
from remuda_lab.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

INSTANCES = f"{LOCAL_POOL}/instances"


@pytest.mark.fault(what="target QEMU SIGKILL", when="memory phase")
def test_the_qemu_that_receives_is_killed_and_the_guest_stays(mesh: Mesh, stage: Scene) -> None:
    move = stage.begin()
    move.wait_memory()
    stage.struck()
    mesh.lab.send_signal(stage.target, f"qemu:{stage.guest.uid}", signal.SIGKILL)
    stage.ended(move, result="MIGRATION_FAILED", outcome="STAYED", at="source")


@pytest.mark.fault(what="target has no room for the disk", when="disks are copied")
def test_the_disk_of_the_target_is_full_in_the_middle_of_the_copy(mesh: Mesh, stage: Scene) -> None:
    in_guest(mesh, stage.source, stage.guest, "head -c 6000000 /dev/urandom > /data/ballast && sync")
    with small_file_system(mesh, stage.target, mebibytes=3):
        move = stage.begin(bandwidth=0)
        move.wait_step_begun("guest_moved")
        stage.struck()
        stage.ended(move, result="MIGRATION_FAILED", outcome="STAYED", at="source")
        # What lies on that file system the others cannot see.
        assert mesh.lab.host(stage.target).run(["ls", INSTANCES]) == ""
    in_guest(mesh, stage.source, stage.guest, "rm /data/ballast && sync")


@pytest.mark.fault(what="source QEMU SIGKILL", when="memory phase")
def test_the_qemu_that_sends_is_killed_and_the_guest_is_started_anew_where_it_was(
    mesh: Mesh, stage: Scene
) -> None:
    move = stage.begin()
    move.wait_memory()
    stage.struck()
    mesh.lab.send_signal(stage.source, f"qemu:{stage.guest.uid}", signal.SIGKILL)
    stage.ended(move, result="MIGRATION_FAILED", outcome="GUEST_LOST", at="source", memory_kept=False)


@pytest.mark.fault(what="the guest powers itself off", when="memory phase")
def test_the_guest_powers_itself_off_and_is_not_started_by_the_move(mesh: Mesh, stage: Scene) -> None:
    move = stage.begin()
    move.wait_memory()
    stage.struck()
    # From inside: libvirt lets nobody press the button while a job holds the domain.
    ask_agent(mesh, stage.source, stage.guest, "guest-exec", path="/sbin/shutdown", arg=["-h"])
    stage.ended(
        move, result="GUEST_STOPPED", outcome="GUEST_STOPPED", at="source", state=Instance.STATE_STOPPED
    )
    mesh.cli().run("instance", "start", stage.guest.uid)
    stage.guest.view.wait_up()


@contextmanager
def small_file_system(mesh: Mesh, host: str, *, mebibytes: int) -> Iterator[None]:
    """The pool tells of the room below it, so that preflight sees nothing: it fills while the move copies."""
    machine = mesh.lab.host(host)
    machine.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", INSTANCES])
    try:
        yield
    finally:
        machine.run(["umount", INSTANCES])


def in_guest(mesh: Mesh, host: str, guest: Guest, script: str) -> None:
    """Runs a shell script by the guest's agent and waits for its end."""
    started = ask_agent(mesh, host, guest, "guest-exec", path="/bin/sh", arg=["-c", script])

    def status() -> dict[str, object] | None:
        seen = ask_agent(mesh, host, guest, "guest-exec-status", pid=started["pid"])
        return seen if seen["exited"] else None

    ended = wait_for(f"{script!r} ends in the guest", status, timeout=120, interval=0.2)
    assert ended["exitcode"] == 0, ended


def ask_agent(mesh: Mesh, host: str, guest: Guest, what: str, **arguments: object) -> dict[str, object]:
    words = json.dumps({"execute": what, "arguments": arguments})
    answer = json.loads(mesh.lab.host(host).virsh("qemu-agent-command", guest.uid, words))
    found: dict[str, object] = answer["return"]
    return found

"""Messes made by hand with virsh and mv: told by a dry run that changes nothing, then repaired."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from remuda.compute.v1 import reconcile_pb2
from remuda.compute.v1.instance_pb2 import Instance
from remuda_lab.errors import CommandFailed
from remuda_lab.guest_view import GuestState
from remuda_lab.mesh import Guest, Mesh
from remuda_lab.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

PATIENCE = 180
RUNNING, STOPPED, FAILED = Instance.STATE_RUNNING, Instance.STATE_STOPPED, Instance.STATE_FAILED
Said = list[tuple[str, str]]
"""(action, host)"""


def asked(mesh: Mesh, guest: Guest, *, dry: bool) -> reconcile_pb2.ReconcileReport:
    request = reconcile_pb2.ReconcileInstanceRequest(
        name=guest.name, validate_only=dry, request_id=str(uuid.uuid4())
    )
    operation = mesh.instances.ReconcileInstance(request, timeout=60)
    if not dry:
        operation = mesh.wait_done(operation.name, timeout=PATIENCE)
    assert operation.done
    assert not operation.HasField("error"), str(operation.error)
    report = reconcile_pb2.ReconcileReport()
    assert operation.response.Unpack(report)
    assert not report.silent_hosts
    return report


def said(mesh: Mesh, report: reconcile_pb2.ReconcileReport) -> Said:
    action = reconcile_pb2.Repair.Action
    return [
        (
            action.Name(repair.action).removeprefix("ACTION_"),
            mesh.host_name(repair.host) if repair.host else "record",
        )
        for repair in report.repairs
    ]


def shown(mesh: Mesh, guest: Guest) -> tuple[dict[str, str], list[str], int]:
    """Everything that a dry run must leave alone: domains, files, the record's state."""
    domains = {
        f"{host} {name}": state
        for host in mesh.lab.running_hosts()
        for name, state in mesh.domains(host).items()
    }
    files = [
        str(path) for host in mesh.lab.running_hosts() for path in sorted(mesh.directory(host, "").rglob("*"))
    ]
    return domains, files, guest.record().state


def planned(mesh: Mesh, guest: Guest) -> Said:
    """What a dry run says; that it does nothing is checked."""
    before = shown(mesh, guest)
    found = said(mesh, asked(mesh, guest, dry=True))
    assert shown(mesh, guest) == before
    return found


def reconciled(mesh: Mesh, guest: Guest, expected: Said) -> reconcile_pb2.ReconcileReport:
    """The dry run and the deed say the same, and everything that is not for a person is done."""
    # Observed by the leader first, so that what the record says does not change in between.
    assert planned(mesh, guest) == expected
    report = asked(mesh, guest, dry=False)
    assert said(mesh, report) == expected
    for repair in report.repairs:
        assert repair.done == (repair.action != reconcile_pb2.Repair.ACTION_ASK_OPERATOR), repair
    return report


def whole_again(mesh: Mesh, guest: Guest, before: GuestState, *, host: str, boots: int) -> GuestState:
    """Record, libvirt and disk agree, and the counter on the disk has not gone back."""
    state = guest.view.wait_up(timeout=PATIENCE)
    assert state.boots == before.boots + boots
    assert state.disk_tick >= before.disk_tick
    assert guest.view.disk().whole
    record = guest.wait_state(RUNNING, timeout=60)
    assert (mesh.host_name(record.host), record.status_message) == (host, "")
    assert mesh.lab.host(host).virsh("domstate", guest.uid) == "running"
    assert guest.uid in mesh.lab.host(host).virsh("list", "--all", "--persistent", "--name").split()
    assert planned(mesh, guest) == []
    return state


def until(guest: Guest, state: Instance.State.ValueType) -> None:
    guest.wait_state(state, timeout=PATIENCE)


def test_a_guest_destroyed_undefined_and_robbed_of_its_disk_by_hand_is_made_whole(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host1")
    host = mesh.lab.host("host1")
    before = guest.view.state()
    assert planned(mesh, guest) == []

    host.virsh("undefine", guest.uid)
    reconciled(mesh, guest, [("DEFINE", "host1")])
    state = whole_again(mesh, guest, before, host="host1", boots=0)
    assert state.boot_nonce == before.boot_nonce, "what runs is not touched"

    host.virsh("destroy", guest.uid)
    until(guest, STOPPED)
    reconciled(mesh, guest, [("START", "host1"), ("RECORD", "record")])
    state = whole_again(mesh, guest, before, host="host1", boots=1)

    host.virsh("destroy", guest.uid)
    host.virsh("undefine", guest.uid)
    until(guest, FAILED)
    reconciled(mesh, guest, [("DEFINE", "host1"), ("START", "host1"), ("RECORD", "record")])
    state = whole_again(mesh, guest, state, host="host1", boots=1)

    # As somebody does who needs room on this pool.
    host.virsh("destroy", guest.uid)
    until(guest, STOPPED)
    directory = mesh.directory("host1", guest.uid)
    away = directory.with_name(f"{guest.uid}.away")
    away.mkdir()
    shutil.move(directory / "disk.qcow2", away / "disk.qcow2")
    report = reconciled(mesh, guest, [("ASK_OPERATOR", "host1"), ("RECORD", "record")])
    record = guest.wait_state(FAILED)
    place = f"local/instances/{away.name} on host1"
    assert place in report.repairs[0].reason
    assert place in record.status_message
    with pytest.raises(CommandFailed) as left:
        mesh.cli().run("instance", "reconcile", "web-1", "--dry-run")
    assert place in str(left.value)
    assert "1 left for a person to decide" in str(left.value)
    assert mesh.domains("host1") == {guest.uid: "shut off"}, "nothing is started without its disk"
    shutil.move(away / "disk.qcow2", directory / "disk.qcow2")
    away.rmdir()
    out = mesh.cli().run("instance", "reconcile", "web-1")
    assert re.search(r"done +START +host1", out), out
    whole_again(mesh, guest, state, host="host1", boots=1)
    events = [event["type"] for event in mesh.cli().json("instance", "events", "web-1")]
    assert {"RECONCILE_DEFINE", "RECONCILE_START", "RECONCILE_ASK_OPERATOR"} <= set(events)


def test_a_second_copy_on_the_same_disk_is_refused_by_its_lock_and_asked_about_when_it_is_alone(
    mesh: Mesh,
) -> None:
    guest = mesh.launch("web-1", host="host1", pool="shared")
    before = guest.view.state()
    xml = mesh.lab.host("host1").virsh("dumpxml", "--inactive", guest.uid)
    host2 = mesh.lab.host("host2")
    host2.run(["virsh", "-q", "-c", "qemu:///system", "define", "/dev/stdin"], stdin=xml)
    with pytest.raises(CommandFailed, match="lock"):
        host2.virsh("start", guest.uid)
    reconciled(mesh, guest, [("REMOVE_STRAY", "host2")])
    assert mesh.domains("host2") == {}
    state = whole_again(mesh, guest, before, host="host1", boots=0)
    assert state.boot_nonce == before.boot_nonce

    mesh.lab.host("host1").virsh("destroy", guest.uid)
    until(guest, STOPPED)
    host2.run(["virsh", "-q", "-c", "qemu:///system", "define", "/dev/stdin"], stdin=xml)
    host2.virsh("start", guest.uid)
    report = reconciled(mesh, guest, [("ASK_OPERATOR", "host2"), ("RECORD", "record")])
    assert "on the same disk" in report.repairs[0].reason
    assert "host2" in guest.wait_state(FAILED).status_message
    assert mesh.domains("host1") == {guest.uid: "shut off"}, "a second one is never started"
    assert mesh.domains("host2") == {guest.uid: "running"}, "what runs is never stopped"
    running = guest.view.wait_up(timeout=PATIENCE)

    host2.virsh("destroy", guest.uid)
    reconciled(mesh, guest, [("REMOVE_STRAY", "host2"), ("START", "host1"), ("RECORD", "record")])
    assert mesh.domains("host2") == {}
    whole_again(mesh, guest, running, host="host1", boots=1)


@contextmanager
def copied_overlay(mesh: Mesh, guest: Guest, source: str, target: str) -> Iterator[str]:
    """The guest's files in the other host's pool, and the definition of a copy that keeps off the network."""
    directory, pools = (
        mesh.directory(target, guest.uid),
        [mesh.lab.paths.host(name).local_pool / "base" for name in (source, target)],
    )
    shutil.copytree(mesh.directory(source, guest.uid), directory)
    lacking = [base for base in pools[0].iterdir() if not (pools[1] / base.name).exists()]
    made = [Path(shutil.copy2(base, pools[1] / base.name)) for base in lacking]
    xml = mesh.lab.host(source).virsh("dumpxml", "--inactive", guest.uid)
    try:
        yield re.sub(r"<interface .*?</interface>", "", xml, flags=re.DOTALL)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        for base in made:
            base.unlink(missing_ok=True)


def test_a_copy_started_by_hand_from_a_copied_disk_is_paused_and_never_destroyed(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host1")
    before = guest.view.state()
    host2 = mesh.lab.host("host2")
    with copied_overlay(mesh, guest, "host1", "host2") as xml:
        host2.run(["virsh", "-q", "-c", "qemu:///system", "define", "/dev/stdin"], stdin=xml)
        host2.virsh("start", guest.uid)
        try:
            report = reconciled(mesh, guest, [("PAUSE_STRAY", "host2")])
            assert [copy.on_record for copy in report.found] == [True, False]
            assert mesh.domains("host2") == {guest.uid: "paused"}
            # From now on it is for a person to say whose disk is right.
            assert planned(mesh, guest) == [("ASK_OPERATOR", "host2")]
        finally:
            host2.virsh("destroy", guest.uid)
        reconciled(mesh, guest, [("REMOVE_STRAY", "host2")])
        assert mesh.directory("host2", guest.uid).exists(), "files are the janitor's business"
    assert mesh.domains("host2") == {}
    wait_for("the guest ticks on", lambda: guest.view.wait_tick(before.memory_tick), timeout=PATIENCE)
    state = whole_again(mesh, guest, before, host="host1", boots=0)
    assert state.boot_nonce == before.boot_nonce

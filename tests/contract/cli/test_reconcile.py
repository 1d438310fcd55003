"""instance reconcile and host sweep, over real gRPC."""

import json
from typing import Any

from remuda.compute.v1 import host_pb2, operation_pb2, reconcile_pb2

from tests.contract.cli.conftest import operation

Repair = reconcile_pb2.Repair
Item = host_pb2.SweepItem
Metadata = operation_pb2.OperationMetadata
HOST1 = "hosts/aaaaaaaa-0000-4000-8000-000000000001"
HOST2 = "hosts/bbbbbbbb-0000-4000-8000-000000000002"


def report(*repairs: reconcile_pb2.Repair, silent: bool = False) -> reconcile_pb2.ReconcileReport:
    return reconcile_pb2.ReconcileReport(
        intended="RUNNING, shall run; on host1, pool local, epoch 1",
        found=[
            reconcile_pb2.FoundCopy(
                host=HOST1, epoch=1, domain="SHUTOFF (destroyed)", files="local: disk.qcow2", on_record=True
            ),
            reconcile_pb2.FoundCopy(host=HOST2, domain="none", files="local: \x1b[31mdisk.qcow2"),
        ],
        repairs=repairs,
        silent_hosts=[HOST2] if silent else [],
    )


START = Repair(action=Repair.ACTION_START, host=HOST1, reason="it is off", done=True)
ASK = Repair(action=Repair.ACTION_ASK_OPERATOR, host=HOST2, reason="its disk is not where it belongs")


def ends_with(gateway: Any, answer: reconcile_pb2.ReconcileReport) -> None:
    ended = operation(Metadata.STATE_DONE, action="ReconcileInstance")
    ended.done = True
    ended.response.Pack(answer)
    gateway.state.watches.append([ended])


def test_a_dry_run_shows_record_copies_and_repairs_at_a_glance_and_waits_for_nothing(gateway: Any) -> None:
    todo = Repair(action=Repair.ACTION_START, host=HOST1, reason="it is off")
    gateway.state.report = report(todo, silent=True)
    done = gateway.run("instance", "reconcile", "web-1", "--dry-run")
    assert done.code == 0
    assert done.out.splitlines() == [
        "intended: RUNNING, shall run; on host1, pool local, epoch 1",
        "",
        "HOST   RECORD  EPOCH  DOMAIN               FILES",
        "host1  this    1      SHUTOFF (destroyed)  local: disk.qcow2",
        "host2  -       -      none                 local: ?[31mdisk.qcow2",
        "",
        "no answer: host2; what they have is not known",
        "",
        "to do    START  host1",
        "         it is off",
    ]
    assert "dry run: nothing was done" in done.err
    (asked,) = gateway.state.asked("ReconcileInstance")
    assert asked.validate_only
    assert asked.request_id


def test_what_was_done_and_refused_is_told_and_what_is_left_for_a_person_is_exit_code_4(gateway: Any) -> None:
    refused = Repair(
        action=Repair.ACTION_DEFINE, host=HOST1, reason="no domain", error="libvirt: no such machine type"
    )
    ends_with(gateway, report(START, refused, ASK))
    done = gateway.run("instance", "reconcile", "web-1")
    assert done.code == 4
    assert [line for line in done.out.splitlines() if line[:1] not in ("", " ")][3:] == [
        "host2  -       -      none                 local: ?[31mdisk.qcow2",
        "done     START  host1",
        "REFUSED  DEFINE  host1",
        "to do    ASK_OPERATOR  host2",
    ]
    assert "libvirt: no such machine type" in done.out
    assert "web-1: 2 left for a person to decide" in done.err


def test_nothing_to_repair_is_said(gateway: Any) -> None:
    ends_with(gateway, reconcile_pb2.ReconcileReport(intended="STOPPED, shall be off; on no host"))
    done = gateway.run("instance", "reconcile", "web-1")
    assert done.code == 0
    assert "found:    nothing on any host" in done.out
    assert "nothing to repair" in done.out


def test_a_report_is_json_for_programs(gateway: Any) -> None:
    ends_with(gateway, report(START))
    shown = json.loads(gateway.run("instance", "reconcile", "web-1", "-o", "json").out)
    assert shown["repairs"][0]["action"] == "ACTION_START"
    assert shown["found"][0]["onRecord"] is True


def swept(gateway: Any, *, removed: bool, left_off: int = 0) -> None:
    gateway.state.swept = host_pb2.SweepHostResponse(
        items=[
            Item(
                kind=Item.KIND_TEMPORARY_FILE,
                path="local/.remuda-probe-1",
                size_bytes=4096,
                reason="left by a probe",
                removable=True,
                removed=removed,
            ),
            Item(kind=Item.KIND_FOREIGN, path="local/notes", reason="Remuda did not make it"),
        ],
        left_off=left_off,
    )


def test_a_sweep_lists_what_goes_and_what_stays_and_why(gateway: Any) -> None:
    swept(gateway, removed=False, left_off=3)
    done = gateway.run("host", "sweep", "host1", "--dry-run")
    assert done.code == 0
    rows = [line.split(maxsplit=4) for line in done.out.splitlines()]
    assert rows[0] == ["KIND", "WHAT", "PATH", "SIZE", "REASON"]
    assert [row[1:3] for row in rows[1:]] == [
        ["removable", "local/.remuda-probe-1"],
        ["stays", "local/notes"],
    ]
    assert "nothing was done; would be removed: 1 (4.0 KiB); stays: 1; 3 more are not shown" in done.err
    swept(gateway, removed=True)
    done = gateway.run("host", "sweep", "host1", "--yes")
    assert done.out.splitlines()[1].split()[1] == "removed"
    assert "removed: 1 (4.0 KiB); stays: 1" in done.err
    assert [one.validate_only for one in gateway.state.asked("SweepHost")] == [True, False]
    assert json.loads(gateway.run("host", "sweep", "host1", "--yes", "-o", "json").out)["items"]


def test_a_sweep_asks_first_and_does_nothing_without_an_answer(gateway: Any) -> None:
    done = gateway.run("host", "sweep", "host1")
    assert done.code == 2
    assert "the same command with --yes" in done.err
    assert not gateway.state.asked("SweepHost")

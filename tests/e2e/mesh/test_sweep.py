"""Left-overs made by hand on real hosts: listed, judged, removed with receipts; what is needed stays."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from remuda.compute.v1 import host_pb2
from remuda.compute.v1.host_pb2_grpc import HostServiceStub
from remuda.compute.v1.instance_pb2 import Instance
from remuda_lab.mesh import Guest, Mesh

pytestmark = [pytest.mark.root, pytest.mark.slow]

PATIENCE = 180
TWO_HOURS_AGO = time.time() - 7200
Items = dict[str, tuple[str, str]]
"""Path to (what becomes of it, why)."""


def swept(mesh: Mesh, host: str, *, dry: bool) -> Items:
    request = host_pb2.SweepHostRequest(name=f"hosts/{host}", validate_only=dry, request_id=str(uuid.uuid4()))
    answer = HostServiceStub(mesh.channel).SweepHost(request, timeout=PATIENCE)
    assert not answer.left_off
    assert not (dry and any(item.removed for item in answer.items))
    return {
        f"{host_pb2.SweepItem.Kind.Name(item.kind).removeprefix('KIND_')} {item.path}": (
            "removed" if item.removed else "removable" if item.removable else "stays",
            item.reason,
        )
        for item in answer.items
    }


def fates(items: Items) -> dict[str, str]:
    return {path: fate for path, (fate, _) in items.items()}


def receipts(mesh: Mesh, host: str) -> list[tuple[str, str]]:
    """(what, outcome) of every line that the host has kept."""
    text = mesh.lab.host(host).run(["sh", "-c", "cat /var/lib/remuda/receipts.jsonl 2>/dev/null; true"])
    return [(line["what"].split(",")[0], line["outcome"]) for line in map(json.loads, text.splitlines())]


def old(path: Path) -> Path:
    os.utime(path, (TWO_HOURS_AGO, TWO_HOURS_AGO))
    return path


def owner_json(mesh: Mesh, host: str, instance: str, *, role: str, epoch: int) -> str:
    return json.dumps(
        {
            "instance": instance,
            "host": mesh.host_uuid(host),
            "epoch": epoch,
            "operation": str(uuid.uuid4()),
            "role": role,
        }
    )


@pytest.fixture
def moved(mesh: Mesh) -> Guest:
    """A guest that was launched on host1 and is on host2, of epoch 2."""
    guest = mesh.launch("web-1", host="host1")
    mesh.wait_done(mesh.live_migrate(guest, to="host2").name, timeout=PATIENCE)
    assert guest.host() == "host2"
    return guest


@pytest.fixture
def untidy(mesh: Mesh, moved: Guest) -> Iterator[dict[str, Path]]:
    """What probes, fetches, moves and people have left on host3."""
    pool = mesh.lab.paths.host("host3").local_pool
    stranger = str(uuid.uuid4())
    made = {
        "incoming": pool / "instances" / moved.uid,
        "stranger": pool / "instances" / stranger,
        "notes": pool / "instances" / "notes",
        "base": pool / "base" / f"{'ab' * 32}.raw",
        "young base": pool / "base" / f"{'cd' * 32}.raw",
        "probe": pool / ".remuda-probe-dead",
        "young probe": pool / ".remuda-probe-alive",
        "junk": pool / "customer.img",
    }
    for name, role, instance in (("incoming", "incoming", moved.uid), ("stranger", "owner", stranger)):
        made[name].mkdir()
        (made[name] / "owner.json").write_text(owner_json(mesh, "host3", instance, role=role, epoch=3))
        (made[name] / "disk.qcow2").write_bytes(b"what is left of a disk")
    made["notes"].mkdir()
    for name in ("base", "young base", "probe", "young probe", "junk"):
        made[name].write_bytes(b"x" * 4096)
    old(made["base"])
    old(made["probe"])
    old(made["junk"])
    try:
        yield made
    finally:
        for path in made.values():
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_what_is_left_goes_with_receipts_and_what_is_needed_foreign_young_or_unproven_stays(
    mesh: Mesh, moved: Guest, untidy: dict[str, Path]
) -> None:
    what_probes_fetches_and_moves_have_left_goes(mesh, moved, untidy)
    a_disk_goes_only_when_an_equal_one_was_read_where_the_record_has_it(mesh, moved)


def what_probes_fetches_and_moves_have_left_goes(mesh: Mesh, moved: Guest, untidy: dict[str, Path]) -> None:
    expected = {
        f"INSTANCE_DIRECTORY local/instances/{moved.uid}": "removable",
        f"BASE_IMAGE local/base/{untidy['base'].name}": "removable",
        "TEMPORARY_FILE local/.remuda-probe-dead": "removable",
        f"INSTANCE_DIRECTORY local/instances/{untidy['stranger'].name}": "stays",
        "FOREIGN local/instances/notes": "stays",
        f"BASE_IMAGE local/base/{untidy['young base'].name}": "stays",
        "TEMPORARY_FILE local/.remuda-probe-alive": "stays",
        "FOREIGN local/customer.img": "stays",
    }
    before, kept = sorted(mesh.lab.paths.host("host3").local_pool.rglob("*")), receipts(mesh, "host3")
    listed = swept(mesh, "host3", dry=True)
    assert {path: listed.get(path, ("missing", ""))[0] for path in expected} == expected, listed
    assert all(reason for _, reason in listed.values())
    assert sorted(mesh.lab.paths.host("host3").local_pool.rglob("*")) == before
    assert receipts(mesh, "host3") == kept

    out = mesh.cli().run("host", "sweep", "host3", "--yes")
    assert [line.split()[0] for line in out.splitlines() if line.split()[1] == "removed"] == [
        "INSTANCE_DIRECTORY",
        "TEMPORARY_FILE",
        "BASE_IMAGE",
    ], out
    assert {name: path.exists() for name, path in untidy.items()} == {
        name: name not in ("incoming", "base", "probe") for name in untidy
    }
    new = receipts(mesh, "host3")[len(kept) :]
    assert [outcome for _, outcome in new] == ["removing", "removed"] * 3
    assert {what for what, _ in new} == {
        f"directory local/instances/{moved.uid}",
        f"file local/base/{untidy['base'].name}",
        "file local/.remuda-probe-dead",
    }
    assert "removable" not in fates(swept(mesh, "host3", dry=True)).values()
    assert not any(moved.uid in path for path in swept(mesh, "host2", dry=True)), "it is needed there"
    moved.view.wait_tick(moved.view.state().memory_tick)


def a_disk_goes_only_when_an_equal_one_was_read_where_the_record_has_it(mesh: Mesh, moved: Guest) -> None:
    host1 = mesh.lab.host("host1")
    behind, current = mesh.directory("host1", moved.uid), mesh.directory("host2", moved.uid)
    xml = mesh.lab.host("host2").virsh("dumpxml", "--inactive", moved.uid)
    shutil.copytree(current, behind)
    try:
        (behind / "owner.json").write_text(owner_json(mesh, "host1", moved.uid, role="owner", epoch=1))
        host1.run(
            ["virsh", "-q", "-c", "qemu:///system", "define", "/dev/stdin"],
            stdin=re.sub(r"""epoch=(["'])2\1""", r"epoch=\g<1>1\1", xml),
        )
        place, definition = f"INSTANCE_DIRECTORY local/instances/{moved.uid}", f"DOMAIN {moved.uid}"
        listed = swept(mesh, "host1", dry=True)
        assert (listed[definition][0], listed[place][0]) == ("removable", "stays")
        assert "stop the instance" in listed[place][1]
        assert mesh.domains("host1") == {moved.uid: "shut off"}
        listed = swept(mesh, "host1", dry=False)
        assert (listed[definition][0], listed[place][0]) == ("removed", "stays")
        assert mesh.domains("host1") == {}

        mesh.cli().run("instance", "stop", "web-1", "--force")
        moved.wait_state(Instance.STATE_STOPPED, timeout=60)
        listed = swept(mesh, "host1", dry=False)
        assert listed[place][0] == "stays"
        assert "differs" in listed[place][1], "the guest has written since it was copied"
        assert (behind / "disk.qcow2").exists()

        shutil.copy2(current / "disk.qcow2", behind / "disk.qcow2")
        listed = swept(mesh, "host1", dry=False)
        assert listed[place][0] == "removed", listed
        assert "holds the same as the one on host2" in listed[place][1]
        assert not behind.exists()
        assert receipts(mesh, "host1")[-1] == (f"directory local/instances/{moved.uid}", "removed")
    finally:
        shutil.rmtree(behind, ignore_errors=True)
    mesh.cli().run("instance", "start", "web-1")
    assert moved.view.wait_up(timeout=PATIENCE).boots == 2
    assert moved.view.disk().whole

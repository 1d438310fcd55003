"""A guest's life on one host, from the api down to libvirt and back out of the guest's own mouth."""

from __future__ import annotations

import time

import grpc
import pytest
from remuda.compute.v1.instance_pb2 import Instance
from remuda_lab.errors import CommandFailed
from remuda_lab.mesh import IMAGE, Mesh
from remuda_lab.pinger import Pinger
from remuda_lab.waiting import wait_for

pytestmark = pytest.mark.root

GRACE_SECONDS = 4


def test_a_guest_gets_name_address_and_user_data_from_its_config_drive(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", user_data="#!/bin/sh\nexit 7\n")
    state = guest.view.state()
    assert (state.hostname, state.uuid) == ("web-1", guest.uid)
    assert state.addresses == (str(guest.address),)
    wait_for(
        "user data has run",
        lambda: guest.view.state().user_data == "exit 7",
        timeout=60,
        status=lambda: guest.view.state(),
    )
    with Pinger(mesh.lab.fabric().init, guest.address, interval=0.05) as pinger:
        pinger.wait_answer(timeout=60)
    record = guest.record()
    assert (record.state, record.intent, record.epoch) == (Instance.STATE_RUNNING, Instance.INTENT_RUNNING, 1)
    assert mesh.domains(guest.host()) == {guest.uid: "running"}
    console = mesh.cli().run("instance", "console-log", "web-1")
    assert f"remuda-guest: up host=web-1 uuid={guest.uid}" in console


def test_stop_presses_the_power_button_and_start_boots_the_same_disk(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host2")
    before = guest.view.wait_tick(3)
    mesh.cli().run("instance", "stop", "web-1", "--grace", "40s")
    assert guest.record().state == Instance.STATE_STOPPED
    assert mesh.domains("host2") == {guest.uid: "shut off"}
    console = mesh.cli().run("instance", "console-log", "web-1")
    assert "remuda-guest: power off" in console, "it was told, not just switched off"
    mesh.cli().run("instance", "start", "web-1")
    after = guest.view.wait_up()
    assert (after.boots, before.boots) == (2, 1)
    assert after.boot_nonce != before.boot_nonce
    assert after.disk_tick >= before.disk_tick
    assert guest.host() == "host2"


def test_a_guest_that_is_deaf_to_the_power_button_is_switched_off_after_the_grace(mesh: Mesh) -> None:
    deaf = "#!/bin/sh\nkillall acpid qemu-ga\n"
    guest = mesh.launch("web-1", user_data=deaf)
    wait_for(
        "it is deaf",
        lambda: guest.view.state().user_data.startswith("exit"),
        timeout=60,
        status=lambda: guest.view.state(),
    )
    host = guest.host()
    begun = time.monotonic()
    mesh.cli().run("instance", "stop", "web-1", "--grace", f"{GRACE_SECONDS}s")
    assert time.monotonic() - begun >= GRACE_SECONDS, "it was given the time that it was promised"
    assert guest.record().state == Instance.STATE_STOPPED
    assert mesh.domains(host) == {guest.uid: "shut off"}
    assert "remuda-guest: power off" not in mesh.cli().run("instance", "console-log", "web-1")


def test_delete_leaves_nothing_on_the_host_nor_in_etcd(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host3")
    assert mesh.traces("host3", guest.uid), "there was something to remove"
    mac = guest.record().network_interfaces[0].mac_address
    guest.delete()
    assert mesh.traces("host3", guest.uid) == []
    keys = mesh.etcd()
    left = [key for key in keys if guest.uid in key and not key.startswith(("events/", "migrations/"))]
    assert left == []
    assert f"ports/guests/{guest.address}" not in keys
    assert f"macs/{mac}" not in keys
    with pytest.raises(grpc.RpcError) as refused:
        guest.record()
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_launch_that_fails_on_its_host_leaves_nothing_there_and_says_why(mesh: Mesh) -> None:
    host = mesh.lab.host("host3")
    host.run(["ip", "link", "set", "br0", "name", "elsewhere"])
    try:
        with pytest.raises(CommandFailed) as failed:
            mesh.cli().run(*_launch("web-1", "--host", "host3"))
    finally:
        host.run(["ip", "link", "set", "elsewhere", "name", "br0"])
    assert "br0" in failed.value.output, "the reason names what is missing"
    (record,) = mesh.cli().json("instance", "list")
    assert record["state"] == "STATE_FAILED"
    assert "br0" in record["statusMessage"]
    assert (record["host"], record["networkInterfaces"][0]["macAddress"]) == ("", "")
    assert mesh.traces("host3", record["uid"]) == []
    assert list(mesh.etcd("ports/")) == []


def test_a_launch_that_no_host_can_take_says_which_filter_refused(mesh: Mesh) -> None:
    remuda = mesh.cli()
    remuda.run("flavor", "create", "huge", "--vcpus", "1", "--memory", "900000")
    try:
        with pytest.raises(CommandFailed) as failed:
            remuda.run(*_launch("web-1", flavor="huge"))
    finally:
        remuda.run("flavor", "delete", "huge", "--yes")
    assert "NO_HOST_FITS" in failed.value.output
    assert "memory" in failed.value.output


def _launch(name: str, *more: str, flavor: str = "tiny") -> list[str]:
    return ["instance", "create", name, "--flavor", flavor, "--image", IMAGE, "--network", "guests", *more]

"""Real guests under real libvirt in the lab, moved with nothing but virsh."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from remuda_lab.errors import LabError
from remuda_lab.lab import Lab
from remuda_lab.layout import LOCAL_POOL, SHARED_POOL
from remuda_lab.pinger import Pinger
from remuda_lab.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

Launch = Callable[[str, str], Any]
# p2p, because it outlives whoever asked for it; --tls is QEMU's own, for memory and disks.
MIGRATE = ("migrate", "--live", "--p2p", "--persistent", "--undefinesource", "--tls", "--verbose")


def test_a_guest_takes_name_and_address_from_its_config_drive_and_runs_its_user_data(
    raw_guest: Launch,
) -> None:
    guest = raw_guest("host1", LOCAL_POOL)
    state = guest.view.wait_tick(2)
    assert state.hostname == guest.name
    assert state.uuid == guest.uuid
    assert state.addresses == (str(guest.address),)
    assert state.user_data == "exit 7"
    assert state.boots == 1
    assert guest.view.disk().whole


def test_block_live_migration_over_tls_keeps_memory_and_disk_going(
    bare_lab: Lab, raw_guest: Launch, record_property: Callable[[str, object], None]
) -> None:
    guest = raw_guest("host1", LOCAL_POOL)
    before = guest.view.wait_tick(2)
    guest.make_disks("host2")
    with Pinger(bare_lab.fabric().init, guest.address) as pinger:
        pinger.wait_answer(timeout=60)
        bare_lab.host("host1").virsh(
            *MIGRATE,
            "--copy-storage-inc",
            "--migrate-disks",
            "vda,vdb",
            guest.name,
            "qemu+tls://host2/system",
        )
        pinger.wait_answer(timeout=60)
        report = pinger.report()
    record_property("ping", str(report))
    after = guest.view.wait_tick(before.memory_tick + 2)
    disk = guest.view.disk()

    assert after.boot_nonce == before.boot_nonce
    assert after.boots == before.boots
    assert after.disk_tick > before.disk_tick
    assert disk.whole
    assert disk.disk_tick >= after.disk_tick
    assert guest.name in bare_lab.host("host2").virsh("list", "--name").split()
    assert guest.name not in bare_lab.host("host1").virsh("list", "--all", "--name").split()
    assert 0 < report.longest_gap_seconds < 10


def test_live_migration_on_the_shared_pool_keeps_memory_and_disk_going(
    bare_lab: Lab, raw_guest: Launch, record_property: Callable[[str, object], None]
) -> None:
    guest = raw_guest("host1", SHARED_POOL)
    before = guest.view.wait_tick(2)
    with Pinger(bare_lab.fabric().init, guest.address) as pinger:
        pinger.wait_answer(timeout=60)
        # --unsafe: libvirt cannot know that this directory is the same one on both hosts.
        bare_lab.host("host1").virsh(*MIGRATE, "--unsafe", guest.name, "qemu+tls://host2/system")
        pinger.wait_answer(timeout=60)
        report = pinger.report()
    record_property("ping", str(report))
    after = guest.view.wait_tick(before.memory_tick + 2)

    assert after.boot_nonce == before.boot_nonce
    assert after.disk_tick > before.disk_tick
    assert guest.view.disk().whole
    assert guest.name in bare_lab.host("host2").virsh("list", "--name").split()
    assert 0 < report.longest_gap_seconds < 10


def test_after_a_power_failure_the_guest_boots_again_with_its_disk_and_without_its_memory(
    bare_lab: Lab, raw_guest: Launch
) -> None:
    guest = raw_guest("host3", LOCAL_POOL)
    before = guest.view.wait_tick(3)
    bare_lab.power_fail("host3")
    assert "host3" not in bare_lab.running_hosts()
    with pytest.raises(LabError, match="powered off"):
        bare_lab.host("host3")

    host = bare_lab.boot("host3")
    assert host.qemu_pids() == []
    assert host.virsh("domstate", guest.name) == "shut off"
    host.virsh("start", guest.name)
    after = guest.view.wait_up(timeout=90)
    assert after.boot_nonce != before.boot_nonce
    assert after.boots == before.boots + 1
    assert after.disk_tick >= before.disk_tick


def test_a_guest_outlives_its_libvirtd_and_not_its_qemu(bare_lab: Lab, raw_guest: Launch) -> None:
    guest = raw_guest("host1", LOCAL_POOL)
    host = bare_lab.host("host1")
    first = host.units.status()["libvirtd"]
    bare_lab.send_signal("host1", "libvirtd", signal.SIGKILL)
    wait_for(
        "libvirtd is started again", lambda: host.units.status()["libvirtd"].starts > first.starts, timeout=60
    )
    wait_for("libvirtd finds the guest", lambda: host.virsh("domstate", guest.name) == "running", timeout=60)
    guest.view.wait_tick(guest.view.state().memory_tick)

    assert len(host.qemu_pids(guest.name)) == 1
    bare_lab.send_signal("host1", f"qemu:{guest.name}", signal.SIGKILL)
    wait_for("the guest is gone", lambda: host.virsh("domstate", guest.name) == "shut off", timeout=60)
    assert host.qemu_pids(guest.name) == []


def test_the_power_button_shuts_the_guest_down(bare_lab: Lab, raw_guest: Launch) -> None:
    guest = raw_guest("host2", LOCAL_POOL)
    host = bare_lab.host("host2")
    guest.view.wait_tick(1)
    host.virsh("shutdown", guest.name, "--mode", "acpi")
    wait_for("the guest is off", lambda: host.virsh("domstate", guest.name) == "shut off", timeout=60)
    console = (bare_lab.paths.host("host2").var / f"log/libvirt/qemu/{guest.name}-console.log").read_text()
    assert "remuda-guest: power off" in console


def test_the_guest_agent_answers(bare_lab: Lab, raw_guest: Launch) -> None:
    guest = raw_guest("host2", LOCAL_POOL)
    host = bare_lab.host("host2")
    answer = wait_for(
        "the guest agent answers",
        lambda: host.virsh("qemu-agent-command", guest.name, '{"execute":"guest-get-host-name"}'),
        timeout=60,
    )
    assert guest.name in answer

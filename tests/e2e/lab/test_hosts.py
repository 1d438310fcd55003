"""Hosts of the lab: apart from each other, breakable, and gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from remuda_lab.errors import CommandFailed, LabError
from remuda_lab.lab import Lab
from remuda_lab.layout import LabPaths
from remuda_lab.namespaces import connect_in_network
from remuda_lab.processes import ProcessRef, namespace, ticks_since_boot
from remuda_lab.sweep import Footprint, leftovers, machine_interfaces
from remuda_lab.testing import require_root
from remuda_lab.waiting import wait_for

pytestmark = pytest.mark.root


def test_every_host_has_a_name_a_uuid_and_a_libvirt_of_its_own(bare_lab: Lab) -> None:
    seen = set()
    for plan in bare_lab.plans():
        host = bare_lab.host(plan.name)
        assert host.run(["hostname"]).strip() == plan.name
        assert host.virsh("hostname") == plan.name
        assert f"<uuid>{plan.uuid}</uuid>" in host.virsh("capabilities")
        seen.add(host.run(["cat", "/etc/machine-id"]))
    assert len(seen) == 3


def test_names_resolve_to_management_addresses_and_never_to_loopback(bare_lab: Lab) -> None:
    for asking in bare_lab.plans():
        for asked in bare_lab.plans():
            answer = bare_lab.host(asking.name).run(["getent", "ahostsv4", asked.name])
            assert {line.split()[0] for line in answer.splitlines()} == {str(asked.address)}


def test_libvirt_answers_other_hosts_over_tls_and_not_over_tcp(bare_lab: Lab) -> None:
    host = bare_lab.host("host1")
    assert host.run(["virsh", "-q", "-c", "qemu+tls://host2/system", "hostname"]).strip() == "host2"
    with pytest.raises(CommandFailed, match="refused"):
        host.run(["virsh", "-q", "-c", "qemu+tcp://host2/system", "hostname"])


def test_libvirt_refuses_a_client_without_a_certificate(bare_lab: Lab) -> None:
    with pytest.raises(CommandFailed, match="TLS confirmation"):
        bare_lab.host("host1").run(
            ["virsh", "-q", "-c", "qemu+tls://host2/system?pkipath=/etc/pki/CA", "hostname"]
        )


def test_two_hosts_share_a_pool_and_the_third_does_not(bare_lab: Lab) -> None:
    bare_lab.host("host1").run(["sh", "-c", "echo seen > /var/lib/remuda-pools/shared/probe"])
    assert bare_lab.host("host2").run(["cat", "/var/lib/remuda-pools/shared/probe"]) == "seen\n"
    with pytest.raises(CommandFailed, match="No such file"):
        bare_lab.host("host3").run(["cat", "/var/lib/remuda-pools/shared/probe"])
    bare_lab.host("host2").run(["rm", "/var/lib/remuda-pools/shared/probe"])


def test_a_cut_host_is_unreachable_for_others_and_not_for_its_own_agent(bare_lab: Lab) -> None:
    init, address = bare_lab.fabric().init.pid, (str(bare_lab.plan("host2").address), 16514)
    connect_in_network(init, address, timeout=20).close()
    bare_lab.cut("host2")
    try:
        with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            connect_in_network(init, address, timeout=1)
        assert bare_lab.host("host2").virsh("hostname") == "host2"
    finally:
        bare_lab.heal("host2")
    wait_for("host2 is back", lambda: connect_in_network(init, address, timeout=5), timeout=60).close()


def test_nobodys_address_on_the_wire_changes_when_hosts_lose_power(bare_lab: Lab) -> None:
    """A changed one makes whoever knows it unreachable until the neighbours' caches expire."""

    def macs() -> dict[str, str]:
        links = json.loads(bare_lab.fabric().run(["ip", "-j", "link", "show", "type", "bridge"]))
        return {link["ifname"]: link["address"] for link in links}

    names = [plan.name for plan in bare_lab.plans()]
    bridges = macs()
    nics = {name: bare_lab.host(name).run(["cat", "/sys/class/net/mgmt/address"]) for name in names}
    for name in names:
        bare_lab.power_fail(name)
    try:
        # Whichever port had the lowest address is gone too.
        assert macs() == bridges
    finally:
        for name in names:
            bare_lab.boot(name)
    assert {name: bare_lab.host(name).run(["cat", "/sys/class/net/mgmt/address"]) for name in names} == nics


def test_what_a_host_sends_can_be_limited(bare_lab: Lab) -> None:
    bare_lab.shape("host1", 10)
    assert "tbf" in bare_lab.host("host1").run(["tc", "qdisc", "show", "dev", "mgmt"])
    bare_lab.shape("host1", None)
    assert "tbf" not in bare_lab.host("host1").run(["tc", "qdisc", "show", "dev", "mgmt"])


def test_a_stopped_libvirtd_does_not_answer_until_it_is_continued(bare_lab: Lab) -> None:
    host = bare_lab.host("host3")
    bare_lab.send_signal("host3", "libvirtd", signal.SIGSTOP)
    try:
        with pytest.raises(CommandFailed, match="did not end"):
            host.virsh("hostname", timeout=1)
    finally:
        bare_lab.send_signal("host3", "libvirtd", signal.SIGCONT)
    assert host.virsh("hostname") == "host3"


def test_the_machine_reaches_the_fabric_through_a_forwarder(bare_lab: Lab) -> None:
    fabric = bare_lab.fabric()
    server = fabric.popen(
        [sys.executable, "-c", _ECHO_SERVER], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert server.stdout is not None
        port = bare_lab.forward("echo", ("10.77.0.1", int(server.stdout.readline())), port=0)
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(b"x" * 300_000)
            connection.shutdown(socket.SHUT_WR)
            got = b""
            while data := connection.recv(65536):
                got += data
        assert got == b"x" * 300_000
    finally:
        server.kill()
        server.communicate()


def test_a_forwarder_says_which_port_is_taken(bare_lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LabError, match=rf"127\.0\.0\.1:{port}.*another port"):
            bare_lab.forward("taken", ("10.77.0.1", 1), port=port)


def test_down_leaves_no_process_namespace_mount_interface_or_file(tmp_path: Path) -> None:
    require_root()
    interfaces = machine_interfaces()
    lab = Lab(LabPaths(root=tmp_path / "gone"))
    lab.up(hosts=2)
    seen = lab.footprint()
    assert len(seen.namespaces) == 3 + 2 * 5
    assert leftovers(lab.paths, seen)
    assert machine_interfaces() == interfaces
    lab.down()
    assert leftovers(lab.paths, seen) == []
    assert not lab.paths.root.exists()
    assert machine_interfaces() == interfaces


def test_a_namespace_with_the_number_of_an_ended_one_is_not_taken_for_the_labs(tmp_path: Path) -> None:
    require_root()
    paths = LabPaths(root=tmp_path / "gone")
    before = ticks_since_boot()
    wait_for("a tick passes", lambda: ticks_since_boot() > before + 1, timeout=60)
    with subprocess.Popen(["unshare", "--uts", "sleep", "60"]) as foreign:
        try:
            host_name = namespace(os.getpid(), "uts")
            other = wait_for(
                "it has its own",
                lambda: found if (found := namespace(foreign.pid, "uts")) != host_name else None,
                timeout=60,
            )
            reused = frozenset({other})
            assert leftovers(paths, Footprint(namespaces=reused, taken=before)) == []
            (left,) = leftovers(paths, Footprint(namespaces=reused, taken=ticks_since_boot()))
            assert left.startswith(f"process {foreign.pid} in ")
        finally:
            foreign.kill()


def test_the_next_run_sweeps_a_lab_whose_record_was_lost(tmp_path: Path) -> None:
    require_root()
    lab = Lab(LabPaths(root=tmp_path / "lost"))
    lab.up(hosts=1)
    seen, old = lab.footprint(), lab.fabric().init
    lab.paths.state.unlink()
    lab.up(hosts=1)
    assert not old.alive()
    assert lab.fabric().init != old
    lab.down()
    assert leftovers(lab.paths, seen) == []


def test_a_tethered_lab_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    require_root()
    owner = subprocess.Popen(
        [sys.executable, "-c", _TETHERED_OWNER, str(tmp_path / "tethered")], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    fabric = ProcessRef(**json.loads(owner.stdout.readline()))
    assert fabric.alive()
    owner.kill()
    owner.communicate()
    fabric.wait_gone(timeout=30)


def test_up_a_second_time_is_refused_with_the_way_out(bare_lab: Lab) -> None:
    with pytest.raises(LabError, match="remuda-lab down"):
        bare_lab.up()


def test_two_commands_cannot_change_one_lab_at_once(tmp_path: Path) -> None:
    require_root()
    lab = Lab(LabPaths(root=tmp_path / "twice"))
    outcomes: list[str] = []

    def up() -> None:
        try:
            lab.up(hosts=1)
            outcomes.append("up")
        except LabError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=up) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lab.down()
    assert outcomes.count("up") == 1
    assert any("another remuda-lab command" in text or "up already" in text for text in outcomes)


_ECHO_SERVER = """
import socket
with socket.create_server(("10.77.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)
"""

_TETHERED_OWNER = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
from remuda_lab.lab import Lab
from remuda_lab.layout import LabPaths
from remuda_lab.testing import tether
lab = Lab(LabPaths(root=Path(sys.argv[1])))
with tether() as end:
    lab.up(hosts=1, tether=end)
    print(json.dumps(asdict(lab.fabric().init)), flush=True)
    time.sleep(60)
"""

"""Hosts and leaders that come and go while the cluster has guests."""

from __future__ import annotations

import json
import time

import pytest
from remuda.compute.v1.host_pb2 import Host
from remuda.compute.v1.instance_pb2 import Instance
from remuda_core.testing.premise import PremiseLost, set_up_again
from remuda_lab.errors import CommandFailed
from remuda_lab.mesh import IMAGE, Mesh
from remuda_lab.waiting import wait_for

pytestmark = pytest.mark.root

ELECTION_TTL_SECONDS = 5
QUIET_SECONDS = 10


@set_up_again
def settled(mesh: Mesh) -> None:
    """What a launch brings with it may come after it; what is written for ever leaves no such pause."""
    before = revision(mesh)
    # Not a wait for something to happen: the measurement itself takes so long.
    time.sleep(QUIET_SECONDS)
    if (now := revision(mesh)) != before:
        raise PremiseLost(f"{now - before} writes in {QUIET_SECONDS} s")


def test_a_steady_cluster_with_a_guest_writes_nothing_to_etcd(mesh: Mesh) -> None:
    guest = mesh.launch("web-1")
    guest.wait_record(lambda record: record.observed.power_state == Instance.POWER_STATE_RUNNING)
    # Heartbeats and observations are kept in the leader's memory.
    settled(mesh)


@set_up_again
def test_an_idle_leader_that_is_killed_is_followed_within_about_its_ttl(mesh: Mesh) -> None:
    leader = mesh.leader()
    mesh.cluster.kill(leader)
    killed = time.monotonic()
    try:
        successor = mesh.leader()
        took = time.monotonic() - killed
        mesh.wait_hosts_up()
    finally:
        mesh.cluster.start(leader)
    assert successor != leader
    # etcd looks for expired leases twice a second, and the standby has to read its journal, on cores that it
    # shares with three libvirtds.
    if took >= 2 * ELECTION_TTL_SECONDS:
        raise PremiseLost(f"it took {took:.1f} s, if only for want of processors")


def test_a_host_that_loses_power_is_unreachable_and_comes_back_by_itself(mesh: Mesh) -> None:
    elsewhere = mesh.launch("web-1", host="host1")
    before = mesh.host("host3")
    mesh.lab.power_fail("host3")
    try:
        wait_for(
            "host3 is unreachable",
            lambda: mesh.host("host3").state == Host.STATE_UNREACHABLE,
            timeout=60,
            status=lambda: Host.State.Name(mesh.host("host3").state),
        )
        with pytest.raises(CommandFailed) as refused:
            mesh.cli().run(*launch("web-2", "--host", "host3"))
        assert "NO_HOST_FITS" in refused.value.output
        elsewhere.view.wait_tick(elsewhere.view.state().memory_tick)
    finally:
        mesh.lab.boot("host3")
    mesh.wait_hosts_up()
    after = mesh.host("host3")
    assert after.boot_id != before.boot_id
    assert after.inventory.pools[0].uid == before.inventory.pools[0].uid


def test_a_guest_outlives_its_hosts_libvirtd_and_agent(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host2")
    before = guest.view.state()
    mesh.lab.send_signal("host2", "libvirtd")
    mesh.cluster.restart("host2")
    mesh.wait_hosts_up()
    after = guest.view.wait_tick(before.memory_tick)
    assert after.boot_nonce == before.boot_nonce
    # The new agent has a working connection to the new libvirtd.
    mesh.cli().run("instance", "stop", "web-1", "--force")
    assert guest.record().state == Instance.STATE_STOPPED
    assert mesh.domains("host2") == {guest.uid: "shut off"}


def test_a_cordoned_host_gets_nothing_and_the_explanation_says_so(mesh: Mesh) -> None:
    remuda = mesh.cli()
    remuda.run("host", "cordon", "host3")
    try:
        answer = remuda.json("host", "explain-placement", "--flavor", "tiny")
    finally:
        remuda.run("host", "uncordon", "host3")
    verdicts = {one["displayName"]: one for one in answer["hosts"]}
    assert not verdicts["host3"]["eligible"]
    assert "cordoned" in verdicts["host3"]["reason"]
    assert verdicts["host1"]["eligible"]


def revision(mesh: Mesh) -> int:
    """etcd's revision: it grows with every write and with nothing else."""
    argv = ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", "127.0.0.1:2379", "get", "/", "-w", "json"]
    number: int = json.loads(mesh.lab.fabric().run(argv))["header"]["revision"]
    return number


def launch(name: str, *more: str) -> list[str]:
    return ["instance", "create", name, "--flavor", "tiny", "--image", IMAGE, "--network", "guests", *more]

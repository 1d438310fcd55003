"""Hosts that lose their power with guests on them, and what they may start when they are back."""

from __future__ import annotations

import asyncio
import re
import signal
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager

import grpc
import pytest
from remuda.agent.v1 import agent_pb2
from remuda.agent.v1.agent_pb2_grpc import AgentServiceStub
from remuda.agent.v1.common_pb2 import LeaderRef, StepKey
from remuda.compute.v1.host_pb2 import Host
from remuda.compute.v1.instance_pb2 import Instance
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.status import from_rpc_error, from_status
from remuda_core.rpc.tls import Tls
from remuda_lab.cluster import addresses
from remuda_lab.demo_proof import Before
from remuda_lab.faults.move import Move
from remuda_lab.faults.scene import SLOW_MIB_S
from remuda_lab.mesh import Guest, Mesh
from remuda_lab.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

SCHEDULERS = ("scheduler-1", "scheduler-2")
GAUGE = "remuda_agent_quarantined_copies"


class Hand:
    """Gives a host start orders, with a scheduler's certificate and any leader's name."""

    def __init__(self, mesh: Mesh, host: str) -> None:
        pki = mesh.lab.paths.pki
        pair = pki / "services" / "scheduler-1"
        self._tls = Tls(
            ca=(pki / "ca.pem").read_bytes(),
            cert=(pair / "cert.pem").read_bytes(),
            key=(pair / "key.pem").read_bytes(),
        )
        self._mesh, self._host = mesh, host
        self._port = mesh.lab.forward(f"orders-{host}", addresses.agent(mesh.lab.plan(host)), port=0)

    @property
    def leader(self) -> LeaderRef:
        """The newest that the host has acknowledged."""
        path = self._mesh.lab.paths.host(self._host).state / "leader"
        return LeaderRef.FromString(path.read_bytes())

    def start(self, guest: Guest, *, epoch: int, leader: LeaderRef | None = None) -> RemudaError | None:
        """How it was refused; None: it was not."""
        key = StepKey(
            operation_id=str(uuid.uuid4()),
            step="by_hand",
            direction=StepKey.DIRECTION_DO,
            instance_id=guest.uid,
            epoch=epoch,
            leader=leader or self.leader,
        )
        return asyncio.run(
            self._order(agent_pb2.RunStepRequest(key=key, start_domain=agent_pb2.StartDomain()))
        )

    async def _order(self, request: agent_pb2.RunStepRequest) -> RemudaError | None:
        async with open_channel(f"127.0.0.1:{self._port}", self._tls, server_name=self._host) as channel:
            try:
                messages = [one async for one in AgentServiceStub(channel).RunStep(request, timeout=20)]
            except grpc.aio.AioRpcError as failure:
                return from_rpc_error(failure)
        done = messages[-1].done
        return from_status(done.status) if done.status.code else None


def test_a_power_failure_leaves_a_guest_off_until_the_leader_confirms_it_and_an_agents_death_leaves_it_on(
    mesh: Mesh,
) -> None:
    guest = mesh.launch("web-1", host="host1")
    hand = Hand(mesh, "host1")
    before, qemu = guest.view.state(), mesh.lab.host("host1").qemu_pids(guest.uid)
    mesh.cluster.restart("host1")
    mesh.wait_hosts_up()
    after = guest.view.wait_tick(before.memory_tick)
    assert (after.boot_nonce, mesh.lab.host("host1").qemu_pids(guest.uid)) == (before.boot_nonce, qemu)
    assert gauge(mesh, "host1") == {}

    with killed(mesh, *SCHEDULERS):
        before = guest.view.state()
        mesh.lab.power_fail("host1")
        mesh.lab.boot("host1")
        mesh.cluster.wait_healthy("host1", timeout=120)
        host = mesh.lab.host("host1")
        assert mesh.domains("host1") == {guest.uid: "shut off"}
        assert host.virsh("list", "--all", "--autostart", "--name") == ""
        assert gauge(mesh, "host1") == {"NONE": 1}
        refused = hand.start(guest, epoch=1)
        assert refused is not None
        assert refused.reason is Reason.QUARANTINED
        assert refused.metadata == {"instance": guest.uid, "epoch": "1", "decision": "NONE"}
        older = LeaderRef(cluster_id=hand.leader.cluster_id, epoch=hand.leader.epoch - 1)
        refused = hand.start(guest, epoch=1, leader=older)
        assert refused is not None
        assert refused.reason is Reason.STALE_LEADER
        assert host.qemu_pids() == []

    mesh.wait_hosts_up()
    guest.wait_state(Instance.STATE_STOPPED, timeout=90)
    assert host.qemu_pids() == [], "a verdict is no order to start"
    mesh.cli().run("instance", "start", "web-1")
    booted = guest.view.wait_up()
    assert (booted.boots, booted.disk_tick >= before.disk_tick) == (before.boots + 1, True)
    assert guest.view.disk().whole
    assert gauge(mesh, "host1") == {}
    wait_for("host1 warns of nothing", lambda: not mesh.host("host1").warnings, timeout=60)


def test_a_copy_that_the_guest_has_left_is_never_started_and_is_cleared_away(mesh: Mesh) -> None:
    with impatient(mesh):
        guest = mesh.launch("web-1", host="host1")
        hand = Hand(mesh, "host1")
        before = Before.of(guest)
        epoch = guest.record().epoch
        operation = mesh.live_migrate(guest, to="host3", bandwidth=SLOW_MIB_S).name
        with closing(Move(mesh, guest, operation, source="host1", target="host3")) as move:
            move.wait_memory()
            # libvirt goes on by itself, and nobody is there to clear away what the guest leaves.
            mesh.cluster.kill("host1")
            move.hasten()
        wait_for(
            "the guest has switched over",
            lambda: (
                (mesh.domains("host1"), mesh.domains("host3"))
                == ({guest.uid: "shut off"}, {guest.uid: "running"})
            ),
            timeout=180,
            status=lambda: (mesh.domains("host1"), mesh.domains("host3")),
        )
        mesh.lab.power_fail("host1")
        ended = mesh.wait_done(operation, timeout=180)
        assert not ended.HasField("error"), str(ended.error)
        assert [key.split("/")[0] for key in mesh.etcd("debts/")] == ["debts"]
        assert mesh.directory("host1", guest.uid).exists()

        moved = guest.view.wait_tick(before.state.memory_tick)
        mesh.lab.boot("host1")
        mesh.cluster.wait_healthy("host1", timeout=120)
        refusals: list[RemudaError] = []

        def given_up() -> bool:
            refused = hand.start(guest, epoch=epoch)
            assert refused is not None, "the stale copy was started"
            refusals.append(refused)
            assert refused.reason in (Reason.QUARANTINED, Reason.STALE_EPOCH), refusals
            return refused.reason is Reason.STALE_EPOCH

        wait_for("the copy is given up", given_up, timeout=90, status=lambda: refusals[-1:])
        wait_for("the debt is paid", lambda: not mesh.etcd("debts/"), timeout=120)
        assert mesh.traces("host1", guest.uid) == []
        refused = hand.start(guest, epoch=epoch)
        assert refused is not None
        assert refused.reason is Reason.STALE_EPOCH
        mesh.wait_hosts_up()
        assert mesh.host("host1").state == Host.STATE_UP
        wait_for("host1 has no copy left", lambda: gauge(mesh, "host1") == {}, timeout=60)
        after = guest.view.wait_tick(moved.memory_tick)
        assert after.boot_nonce == before.state.boot_nonce
        assert guest.view.disk().whole
        assert (guest.host(), guest.record().epoch) == ("host3", epoch + 1)


def gauge(mesh: Mesh, host: str) -> dict[str, int]:
    """Copies that wait, by decision; those that are none are left out."""
    found = {}
    for line in mesh.cluster.metrics(host).splitlines():
        if line.startswith(f"{GAUGE}{{"):
            labels, _, value = line.rpartition(" ")
            found[labels.split('"')[1]] = int(float(value))
    assert found, f"{GAUGE} is not shown"
    return {decision: count for decision, count in found.items() if count}


@contextmanager
def killed(mesh: Mesh, *names: str) -> Iterator[None]:
    """SIGKILLed for the length of the block, started again afterwards."""
    for name in names:
        mesh.cluster.kill(name)
    try:
        yield
    finally:
        for name in names:
            mesh.cluster.start(name)


@contextmanager
def impatient(mesh: Mesh) -> Iterator[None]:
    """Schedulers that make a debt of what a silent host cannot do after seconds instead of a minute."""
    files = {name: mesh.lab.paths.config / f"{name}.toml" for name in SCHEDULERS}
    texts = {name: file.read_text() for name, file in files.items()}

    def configure(patience: str) -> None:
        for name in SCHEDULERS:
            changed, count = re.subn(r"(?m)^patience_seconds = .*$", patience, texts[name])
            assert count == 1, texts[name]
            files[name].write_text(changed if patience else texts[name])
            mesh.cluster.kill(name, signal.SIGTERM)
        for name in SCHEDULERS:
            mesh.cluster.start(name)
        mesh.wait_hosts_up()

    configure("patience_seconds = 5")
    try:
        yield
    finally:
        if "host1" not in mesh.lab.running_hosts():
            mesh.lab.boot("host1")
        configure("")

"""Preflight's probes between real hosts, whole and broken: asked over mTLS as the leader asks them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1 import probe_pb2 as pb
from remuda.agent.v1.probe_pb2_grpc import ProbeServiceStub
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.tls import Tls
from remuda_lab.cluster import addresses
from remuda_lab.cluster.settings import PHYSICAL_NETWORK
from remuda_lab.host_files import LIBVIRT_TLS_PORT, MIGRATION_PORTS
from remuda_lab.mesh import Mesh
from remuda_lab.waiting import wait_for

if TYPE_CHECKING:
    from remuda.agent.v1.probe_pb2_grpc import ProbeServiceAsyncStub

pytestmark = pytest.mark.root

NONCE = b"sixteen bytes or more"
Cpu = pb.AssessGuestResponse


@asynccontextmanager
async def probed(mesh: Mesh, *names: str) -> AsyncIterator[list[ProbeServiceAsyncStub]]:
    """The hosts' agents, called with a scheduler's certificate."""
    pki = mesh.lab.paths.pki
    pair = pki / "services" / "scheduler-1"
    tls = Tls(
        ca=(pki / "ca.pem").read_bytes(),
        cert=(pair / "cert.pem").read_bytes(),
        key=(pair / "key.pem").read_bytes(),
    )
    async with AsyncExitStack() as stack:
        stubs = []
        for name in names:
            port = mesh.lab.forward(f"probes-{name}", addresses.agent(mesh.lab.plan(name)), port=0)
            channel = await stack.enter_async_context(
                open_channel(f"127.0.0.1:{port}", tls, server_name=name)
            )
            stubs.append(ProbeServiceStub(channel))
        yield stubs


@contextmanager
def dropping(mesh: Mesh, host: str, ports: str) -> Iterator[None]:
    """What comes in to these TCP ports of the host is thrown away without a word."""
    rule: Sequence[str] = ("INPUT", "-p", "tcp", "--dport", ports, "-j", "DROP")
    mesh.lab.host(host).run(["iptables", "-A", *rule])
    try:
        yield
    finally:
        mesh.lab.host(host).run(["iptables", "-D", *rule])


async def transported(source: ProbeServiceAsyncStub, target: ProbeServiceAsyncStub) -> tuple[str, str]:
    """Where the target heard the source from, and how the source failed."""
    call = target.Listen(pb.ListenRequest(nonce=NONCE, patience=Duration(seconds=10)))
    place = await call.read()
    assert isinstance(place, pb.ListenResponse)
    assert MIGRATION_PORTS[0] <= place.port <= MIGRATION_PORTS[1]
    sent = await source.Connect(
        pb.ConnectRequest(address=place.address, port=place.port, nonce=NONCE, patience=Duration(seconds=2))
    )
    last = await call.read()
    assert isinstance(last, pb.ListenResponse)
    assert last.heard == sent.connected
    return last.peer, sent.error


def opening(hostname: str) -> pb.OpenLibvirtRequest:
    return pb.OpenLibvirtRequest(hostname=hostname, transport="tls", patience=Duration(seconds=3))


async def nonce_found(source: ProbeServiceAsyncStub, target: ProbeServiceAsyncStub, pool: str) -> bool:
    name = str(uuid.uuid4())
    await source.WriteNonce(pb.WriteNonceRequest(pool=pool, name=name, content=NONCE))
    try:
        request = pb.ReadNonceRequest(pool=pool, name=name)
        return bool((await target.ReadNonce(request, timeout=30)).content == NONCE)
    finally:
        await source.RemoveNonce(pb.RemoveNonceRequest(pool=pool, name=name))


async def test_two_whole_hosts_pass_every_probe(mesh: Mesh) -> None:
    guest = mesh.launch("web-1", host="host1")
    image = mesh.instance(guest.name).image.rpartition("/")[2]
    async with probed(mesh, "host1", "host2") as (source, target):
        facts = (await source.DescribeGuest(pb.DescribeGuestRequest(instance_id=guest.uid))).guest
        assert [(disk.source, disk.config_drive) for disk in facts.disks] == [
            ("disk.qcow2", False),
            ("config.img", True),
        ]
        assert all(disk.capacity_bytes and disk.allocation_bytes for disk in facts.disks)
        assert not any(disk.readonly for disk in facts.disks)
        request = pb.AssessGuestRequest(
            guest=facts,
            pool="local",
            physical_networks=[PHYSICAL_NETWORK],
            image_id=image,
            manifest_digest="ab" * 32,
        )
        for host in (target, source):
            answer = await host.AssessGuest(request)
            assert answer.cpu in (Cpu.CPU_IDENTICAL, Cpu.CPU_SUPERSET), answer.cpu_detail
            assert answer.machine_type_offered
            assert answer.libvirt_version == facts.libvirt_version
            assert dict(answer.bridges) == {PHYSICAL_NETWORK: "br0"}
            assert answer.pool_available_bytes > 1 << 20
            assert answer.base_image_problem == ""
            assert not answer.overridden
        found = await source.ResolveHost(pb.ResolveHostRequest(hostname="host2"))
        assert list(found.addresses) == [str(mesh.lab.plan("host2").address)]
        peer, error = await transported(source, target)
        assert (peer.rpartition(":")[0], error) == (str(mesh.lab.plan("host1").address), "")
        assert (await source.OpenLibvirt(opening("host2"))).hostname == "host2"
        assert await nonce_found(source, target, "shared")
        assert not await nonce_found(source, target, "local")
        measured = await source.MeasureDirtyRate(
            pb.MeasureDirtyRateRequest(instance_id=guest.uid, period=Duration(seconds=1))
        )
        again = (await source.DescribeGuest(pb.DescribeGuestRequest(instance_id=guest.uid))).guest
        assert again.HasField("dirty_bytes_per_second")
        assert again.dirty_bytes_per_second == measured.dirty_bytes_per_second


async def test_a_firewall_is_found_by_the_transport_and_by_libvirts_port(mesh: Mesh) -> None:
    async with probed(mesh, "host1", "host2") as (source, target):
        with dropping(mesh, "host2", ":".join(map(str, MIGRATION_PORTS))):
            assert await transported(source, target) == ("", "no answer within 2 s")
        with dropping(mesh, "host2", str(LIBVIRT_TLS_PORT)):
            answer = await source.OpenLibvirt(opening("host2"))
            assert "did not answer within 3 s" in answer.error
            # The thread that still hangs keeps nobody waiting.
            assert (await source.OpenLibvirt(opening("host3"))).hostname == "host3"
        assert (await source.OpenLibvirt(opening("host2"))).hostname == "host2"


async def test_a_name_that_resolves_to_another_address_is_told(mesh: Mesh) -> None:
    hosts = mesh.lab.paths.host("host1").etc / "hosts"
    before = hosts.read_text()
    async with probed(mesh, "host1") as (source,):
        try:
            hosts.write_text(before.replace(str(mesh.lab.plan("host2").address), "127.0.1.1"))
            found = await source.ResolveHost(pb.ResolveHostRequest(hostname="host2"))
            hosts.write_text("127.0.0.1 localhost\n")
            nothing = await source.ResolveHost(pb.ResolveHostRequest(hostname="host2"))
        finally:
            hosts.write_text(before)
    assert list(found.addresses) == ["127.0.1.1"]
    assert not nothing.addresses
    assert nothing.error


async def test_a_bridge_that_is_gone_and_stores_that_are_silent_are_told(mesh: Mesh) -> None:
    request = pb.AssessGuestRequest(
        guest=pb.GuestFacts(machine_type="pc-q35-7.2"),
        pool="local",
        physical_networks=[PHYSICAL_NETWORK],
        image_id=str(uuid.uuid4()),
        manifest_digest="ab" * 32,
    )
    async with probed(mesh, "host2") as (target,):
        mesh.lab.host("host2").run(["ip", "link", "set", "br0", "name", "br9"])
        mesh.cluster.kill("image-store")
        try:
            answer = await target.AssessGuest(request)
        finally:
            mesh.lab.host("host2").run(["ip", "link", "set", "br9", "name", "br0"])
            mesh.cluster.start("image-store")
    assert dict(answer.bridges) == {}
    assert "no image store can be reached" in answer.base_image_problem


async def test_a_host_of_the_lab_tells_other_facts_and_says_so(mesh: Mesh) -> None:
    mesh.cluster.override_facts("host2", {"libvirt_version": 8000000, "cpu_missing_features": ["avx2"]})
    try:
        mesh.wait_hosts_up()
        warned = wait_for("host2 warns", lambda: list(mesh.host("host2").warnings), timeout=60)
        assert [warning.split()[0] for warning in warned] == ["cpu", "libvirt_version"]
        assert mesh.host("host2").inventory.libvirt_version == 8_000_000
        async with probed(mesh, "host2") as (target,):
            answer = await target.AssessGuest(pb.AssessGuestRequest(guest=pb.GuestFacts()))
        assert answer.cpu == Cpu.CPU_INCOMPATIBLE
        assert list(answer.overridden) == ["cpu", "libvirt_version"]
    finally:
        mesh.cluster.override_facts("host2", {})
    mesh.wait_hosts_up()
    wait_for("host2 tells the truth", lambda: not mesh.host("host2").warnings, timeout=60)


async def test_an_agent_killed_in_the_middle_of_probes_leaves_nothing_in_the_shared_pool(mesh: Mesh) -> None:
    pool = mesh.lab.paths.shared_pool
    async with probed(mesh, "host1") as (source,):
        request = pb.WriteNonceRequest(pool="shared", name=str(uuid.uuid4()), content=NONCE)
        await source.WriteNonce(request)
        assert left(pool) == [f".remuda-probe-{request.name}"]
        call = source.Listen(pb.ListenRequest(nonce=NONCE, patience=Duration(seconds=30)))
        place = await call.read()
        assert isinstance(place, pb.ListenResponse)
        mesh.cluster.restart("host1")
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
    assert left(pool) == []


def left(pool: Path) -> list[str]:
    return [path.name for path in pool.glob(".remuda-probe-*")]

"""Preflight's probes as the leader calls them: over gRPC, on agents with the fake hypervisor."""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1 import probe_pb2 as pb
from remuda.agent.v1.probe_pb2_grpc import ProbeServiceStub
from remuda_agent.hypervisor import DomainDescription
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor
from remuda_agent.main import serve_host
from remuda_agent.settings import AgentSettings, MigrationSettings, PoolSettings
from remuda_core.errors import Reason
from remuda_core.ids import Epoch, InstanceId, OperationId
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.status import from_rpc_error
from remuda_core.testing.etcd import free_ports

if TYPE_CHECKING:
    from remuda.agent.v1.probe_pb2_grpc import ProbeServiceAsyncStub

    Listening = grpc.aio.UnaryStreamCall[pb.ListenRequest, pb.ListenResponse]

INSTANCE = InstanceId(str(uuid.uuid4()))
NONCE = b"sixteen bytes or more"
DIGEST = "ab" * 32
Cpu = pb.AssessGuestResponse


@dataclass(kw_only=True)
class Host:
    """One running agent."""

    settings: AgentSettings
    probes: "ProbeServiceAsyncStub"

    @property
    def pool(self) -> Path:
        return self.settings.pools[0].path

    @property
    def nonces(self) -> list[Path]:
        return sorted(self.pool.glob(".remuda-probe-*"))


def settings(name: str, directory: Path, pool: Path, **changes: object) -> AgentSettings:
    [port, first] = free_ports(2)
    pool.mkdir(parents=True, exist_ok=True)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "boot_id").write_text("boot-1\n")
    configured = AgentSettings(
        listen=f"127.0.0.1:{port}",
        name=name,
        host_uuid=str(uuid.uuid4()),
        schedulers=("127.0.0.1:1",),  # nobody: questions come all the same
        state_dir=directory / "state",
        hypervisor="fake",
        console_dir=directory / "consoles",
        boot_id_file=directory / "boot_id",
        pools=(PoolSettings(name="shared", path=pool, shared=True),),
        bridges={"physnet": "br0"},
        migration=MigrationSettings(transport="tls", address="127.0.0.1", port_min=first, port_max=first),
        drain_seconds=0.2,
    )
    return configured.model_copy(update=changes)


@contextlib.asynccontextmanager
async def running(configured: AgentSettings, fabric: FakeFabric) -> AsyncIterator[Host]:
    stop = asyncio.Event()
    serving = asyncio.create_task(serve_host(configured, FakeHypervisor(fabric, configured.name), stop))
    try:
        async with open_channel(configured.listen, None, insecure_identity="service/scheduler") as channel:
            await asyncio.wait_for(channel.channel_ready(), 60)
            yield Host(settings=configured, probes=ProbeServiceStub(channel))
    finally:
        stop.set()
        await serving


@pytest_asyncio.fixture
async def fabric() -> AsyncIterator[FakeFabric]:
    fabric = FakeFabric()
    async with fabric.awake():
        yield fabric


@pytest_asyncio.fixture
async def hosts(fabric: FakeFabric, tmp_path: Path) -> AsyncIterator[tuple[Host, Host]]:
    """Two that mount the same pool."""
    pool = tmp_path / "pool"
    async with (
        running(settings("a", tmp_path / "a", pool), fabric) as source,
        running(settings("b", tmp_path / "b", pool), fabric) as target,
    ):
        yield source, target


def seconds(number: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(number * 1e9))
    return duration


async def launch(fabric: FakeFabric, host: Host, *, drive: str = "config.img") -> DomainDescription:
    directory = host.pool / "instances" / INSTANCE
    directory.mkdir(parents=True)
    guest = DomainDescription(
        instance_id=INSTANCE,
        title="guest",
        epoch=Epoch(1),
        operation_id=OperationId(str(uuid.uuid4())),
        vcpus=1,
        memory_mib=128,
        disk=directory / "disk.qcow2",
        config_drive=directory / drive,
        console=directory / "console",
    )
    guest.disk.write_bytes(os.urandom(20000))
    guest.config_drive.write_bytes(b"drive")
    hypervisor = FakeHypervisor(fabric, host.settings.name)
    await hypervisor.define(guest)
    await hypervisor.start(INSTANCE)
    return guest


async def described(host: Host) -> pb.GuestFacts:
    return (await host.probes.DescribeGuest(pb.DescribeGuestRequest(instance_id=INSTANCE))).guest


def question(guest: pb.GuestFacts, **changes: object) -> pb.AssessGuestRequest:
    request = pb.AssessGuestRequest(guest=guest, pool="shared", physical_networks=["physnet"])
    for name, value in changes.items():
        setattr(request, name, value)
    return request


async def test_a_guest_is_described_with_what_its_files_take_here(
    hosts: tuple[Host, Host], fabric: FakeFabric
) -> None:
    source, _ = hosts
    await launch(fabric, source)
    guest = await described(source)
    assert (guest.domain_type, guest.architecture, guest.machine_type) == ("qemu", "x86_64", "pc-q35-7.2")
    assert (guest.libvirt_version, guest.qemu_version) == (9_000_000, 7_002_022)
    assert guest.memory_bytes == 128 << 20
    assert not guest.HasField("dirty_bytes_per_second")
    disk, drive = guest.disks
    assert (disk.source, disk.config_drive) == ("disk.qcow2", False)
    assert 20000 <= disk.allocation_bytes < 200000
    assert (drive.source, drive.config_drive, drive.readonly) == ("config.img", True, False)


async def test_a_config_drive_on_a_cdrom_is_told_as_such(
    hosts: tuple[Host, Host], fabric: FakeFabric
) -> None:
    source, _ = hosts
    await launch(fabric, source, drive="config.iso")
    _, drive = (await described(source)).disks
    assert (drive.device, drive.bus, drive.readonly, drive.config_drive) == ("cdrom", "sata", True, True)


async def test_a_guest_that_is_not_here_cannot_be_described(hosts: tuple[Host, Host]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await described(hosts[0])
    assert from_rpc_error(refused.value).reason is Reason.HYPERVISOR_ERROR


async def test_a_host_like_its_own_takes_the_guest(hosts: tuple[Host, Host], fabric: FakeFabric) -> None:
    source, target = hosts
    await launch(fabric, source)
    answer = await target.probes.AssessGuest(question(await described(source)))
    assert answer.cpu == Cpu.CPU_SUPERSET
    assert answer.machine_type_offered
    assert (answer.libvirt_version, answer.qemu_version, answer.domain_type) == (9_000_000, 7_002_022, "qemu")
    assert dict(answer.bridges) == {"physnet": "br0"}
    assert answer.pool_uid == (target.pool / ".remuda-pool").read_text().strip()
    assert answer.pool_available_bytes > 0
    assert not answer.overridden


async def test_what_a_host_lacks_is_told_apart(hosts: tuple[Host, Host], fabric: FakeFabric) -> None:
    source, target = hosts
    await launch(fabric, source)
    with fabric.transaction() as world:
        world.host("b").cpu_missing_features = ["avx2", "bmi1"]
    guest = await described(source)
    guest.machine_type = "pc-q35-9.9"
    request = question(guest, pool="elsewhere")
    request.physical_networks.append("storage")
    answer = await target.probes.AssessGuest(request)
    assert answer.cpu == Cpu.CPU_INCOMPATIBLE
    assert "avx2, bmi1" in answer.cpu_detail
    assert not answer.machine_type_offered
    assert "pc-q35-7.2" in answer.machine_types
    assert dict(answer.bridges) == {"physnet": "br0"}
    assert (answer.pool_uid, answer.pool_available_bytes) == ("", 0)


async def test_a_hypervisor_that_cannot_compare_leaves_the_other_answers(
    hosts: tuple[Host, Host], fabric: FakeFabric
) -> None:
    source, target = hosts
    await launch(fabric, source)
    fabric.faults["b"].fail("compare_cpu", "internal error: no answer")
    answer = await target.probes.AssessGuest(question(await described(source)))
    assert answer.cpu == Cpu.CPU_UNSPECIFIED
    assert "no answer" in answer.cpu_detail
    assert answer.pool_available_bytes > 0


async def test_a_pool_that_is_not_mounted_has_no_uid_and_gets_none(
    hosts: tuple[Host, Host], fabric: FakeFabric
) -> None:
    source, target = hosts
    await launch(fabric, source)
    (target.pool / ".remuda-pool").unlink()
    answer = await target.probes.AssessGuest(question(await described(source)))
    assert answer.pool_uid == ""
    assert not (target.pool / ".remuda-pool").exists()


async def test_a_base_image_is_cached_or_its_store_has_to_answer(fabric: FakeFabric, tmp_path: Path) -> None:
    alone = settings("a", tmp_path / "a", tmp_path / "pool", image_stores=("127.0.0.1:1",))
    async with running(alone, fabric) as host:
        await launch(fabric, host)
        request = question(await described(host), image_id=str(uuid.uuid4()), manifest_digest=DIGEST)
        answer = await host.probes.AssessGuest(request)
        assert not answer.base_image_cached
        assert "127.0.0.1:1" in answer.base_image_problem
        (host.pool / "base" / f"{DIGEST}.raw").touch()
        answer = await host.probes.AssessGuest(request)
        assert answer.base_image_cached
        assert answer.base_image_problem == ""


async def test_what_is_overridden_for_a_lab_is_answered_and_named(fabric: FakeFabric, tmp_path: Path) -> None:
    file = tmp_path / "facts.toml"
    file.write_text(
        'cpu_missing_features = ["avx2"]\nlibvirt_version = 8000000\nmachine_types = ["pc-q35-6.2"]\n'
    )
    lying = settings("a", tmp_path / "a", tmp_path / "pool", lab=True, facts_override=file)
    async with running(lying, fabric) as host:
        await launch(fabric, host)
        guest = await described(host)
        answer = await host.probes.AssessGuest(question(guest))
    assert guest.libvirt_version == 8_000_000
    assert (answer.libvirt_version, answer.qemu_version) == (8_000_000, 7_002_022)
    assert answer.cpu == Cpu.CPU_INCOMPATIBLE
    assert "avx2" in answer.cpu_detail
    assert list(answer.machine_types) == ["pc-q35-6.2"]
    assert not answer.machine_type_offered
    assert list(answer.overridden) == ["cpu", "libvirt_version", "machine_types"]


async def test_names_are_resolved_by_this_hosts_resolver(hosts: tuple[Host, Host]) -> None:
    probes = hosts[0].probes
    found = await probes.ResolveHost(pb.ResolveHostRequest(hostname="localhost"))
    assert set(found.addresses) <= {"127.0.0.1", "::1"}
    assert found.addresses
    unknown = await probes.ResolveHost(pb.ResolveHostRequest(hostname="no-such-host.invalid"))
    assert not unknown.addresses
    assert unknown.error


async def listening(host: Host, *, patience: float = 5.0) -> tuple["Listening", pb.ListenResponse]:
    call = host.probes.Listen(pb.ListenRequest(nonce=NONCE, patience=seconds(patience)))
    first = await call.read()
    assert isinstance(first, pb.ListenResponse)
    return call, first


def connect(to: pb.ListenResponse, *, nonce: bytes = NONCE, patience: float = 5.0) -> pb.ConnectRequest:
    return pb.ConnectRequest(address=to.address, port=to.port, nonce=nonce, patience=seconds(patience))


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def until_free(port: int) -> None:
    async with asyncio.timeout(60):
        while not is_free(port):
            await asyncio.sleep(0.01)


async def test_what_one_host_sends_the_other_hears(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    call, place = await listening(target)
    assert (place.address, place.port) == ("127.0.0.1", target.settings.migration.port_min)
    sent = await source.probes.Connect(connect(place))
    assert (sent.connected, sent.error) == (True, "")
    heard = await call.read()
    assert isinstance(heard, pb.ListenResponse)
    assert heard.heard
    assert heard.peer.startswith("127.0.0.1:")
    assert await call.read() is grpc.aio.EOF
    await until_free(place.port)


async def test_a_listener_hears_nothing_but_its_nonce(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    call, place = await listening(target, patience=4)
    for other in (b"another nonce of the same size", b"x" * len(NONCE)):
        await source.probes.Connect(connect(place, nonce=other))
    ended = await call.read()
    assert isinstance(ended, pb.ListenResponse)
    assert not ended.heard
    await until_free(place.port)


async def test_a_scan_in_between_does_not_end_a_probe(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    call, place = await listening(target)
    with socket.create_connection((place.address, place.port)):
        pass
    await source.probes.Connect(connect(place))
    heard = await call.read()
    assert isinstance(heard, pb.ListenResponse)
    assert heard.heard


async def test_a_call_that_is_given_up_frees_its_port(hosts: tuple[Host, Host]) -> None:
    _, target = hosts
    call, place = await listening(target, patience=30)
    assert not is_free(place.port)
    call.cancel()
    await until_free(place.port)


async def test_an_agent_that_ends_frees_the_port_of_its_probe(fabric: FakeFabric, tmp_path: Path) -> None:
    async with running(settings("a", tmp_path / "a", tmp_path / "pool"), fabric) as host:
        _, place = await listening(host, patience=30)
    await until_free(place.port)


async def test_a_range_without_a_free_port_is_told(hosts: tuple[Host, Host]) -> None:
    _, target = hosts
    port = target.settings.migration.port_min
    with socket.create_server(("127.0.0.1", port)), pytest.raises(grpc.aio.AioRpcError) as refused:
        await listening(target, patience=1)
    error = from_rpc_error(refused.value)
    assert error.reason is Reason.STEP_FAILED
    assert f"{port}-{port}" in error.message


async def test_a_connection_says_how_it_failed(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    nobody = pb.ListenResponse(address="127.0.0.1", port=target.settings.migration.port_min)
    assert (await source.probes.Connect(connect(nobody))).error == "refused"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = pb.ListenResponse(address="127.0.0.1", port=silent.getsockname()[1])
        answer = await source.probes.Connect(connect(place, patience=0.3))
    assert not answer.connected
    assert answer.error == "no answer within 0.3 s"


async def test_a_name_is_resolved_before_it_is_connected_to(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    call, place = await listening(target)
    place.address = "localhost"
    assert (await source.probes.Connect(connect(place))).connected
    heard = await call.read()
    assert isinstance(heard, pb.ListenResponse)
    assert heard.heard
    place.address = "no-such-host.invalid"
    failed = await source.probes.Connect(connect(place))
    assert failed.error.startswith("no-such-host.invalid is not resolved: ")


async def test_another_hosts_libvirt_is_opened_or_said_why_not(
    hosts: tuple[Host, Host], fabric: FakeFabric
) -> None:
    source, _ = hosts
    request = pb.OpenLibvirtRequest(hostname="b", transport="tls", patience=seconds(0.2))
    assert (await source.probes.OpenLibvirt(request)).hostname == "b"
    with fabric.transaction() as world:
        world.host("b").libvirt_listens = False
    refused = await source.probes.OpenLibvirt(request)
    assert refused.hostname == ""
    assert "Connection refused" in refused.error
    fabric.cut("b")
    assert "did not answer within 0.2 s" in (await source.probes.OpenLibvirt(request)).error
    with pytest.raises(grpc.aio.AioRpcError) as malformed:
        await source.probes.OpenLibvirt(pb.OpenLibvirtRequest(hostname="b", transport="ssh"))
    assert from_rpc_error(malformed.value).reason is Reason.INVALID_ARGUMENT


async def test_a_nonce_written_on_one_host_is_read_on_the_other(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    name = str(uuid.uuid4())
    written = await source.probes.WriteNonce(pb.WriteNonceRequest(pool="shared", name=name, content=NONCE))
    assert written.pool_uid == (source.pool / ".remuda-pool").read_text().strip()
    found = await target.probes.ReadNonce(pb.ReadNonceRequest(pool="shared", name=name), timeout=30)
    assert found.content == NONCE
    for _ in range(2):
        await source.probes.RemoveNonce(pb.RemoveNonceRequest(pool="shared", name=name))
    assert source.nonces == []


async def test_reading_goes_on_until_shortly_before_the_deadline(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    name = str(uuid.uuid4())
    late = target.probes.ReadNonce(pb.ReadNonceRequest(pool="shared", name=name), timeout=30)
    await asyncio.sleep(0.3)
    await source.probes.WriteNonce(pb.WriteNonceRequest(pool="shared", name=name, content=NONCE))
    assert (await late).content == NONCE
    other = pb.ReadNonceRequest(pool="shared", name=str(uuid.uuid4()))
    assert (await target.probes.ReadNonce(other, timeout=3)).content == b""


async def test_a_pool_that_a_host_does_not_have_is_no_place_for_a_nonce(hosts: tuple[Host, Host]) -> None:
    probes, name = hosts[0].probes, str(uuid.uuid4())
    for question in (
        probes.WriteNonce(pb.WriteNonceRequest(pool="../other", name=name, content=NONCE)),
        probes.ReadNonce(pb.ReadNonceRequest(pool="../other", name=name)),
        probes.RemoveNonce(pb.RemoveNonceRequest(pool="../other", name=name)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await question
        assert from_rpc_error(refused.value).reason is Reason.STEP_FAILED


async def test_an_agent_takes_its_nonces_along_when_it_ends(fabric: FakeFabric, tmp_path: Path) -> None:
    async with running(settings("a", tmp_path / "a", tmp_path / "pool"), fabric) as host:
        request = pb.WriteNonceRequest(pool="shared", name=str(uuid.uuid4()), content=NONCE)
        await host.probes.WriteNonce(request)
        assert len(host.nonces) == 1
    assert host.nonces == []


async def test_a_dirty_rate_is_measured_and_described_from_then_on(
    hosts: tuple[Host, Host], fabric: FakeFabric
) -> None:
    source, _ = hosts
    await launch(fabric, source)
    domain = fabric.domain("a", INSTANCE)
    assert domain is not None
    domain.dirty_bytes_per_second = 5 << 20
    request = pb.MeasureDirtyRateRequest(instance_id=INSTANCE, period=seconds(1))
    assert (await source.probes.MeasureDirtyRate(request)).dirty_bytes_per_second == 5 << 20
    assert (await described(source)).dirty_bytes_per_second == 5 << 20


@pytest.mark.parametrize("caller", ["service/api", "user/root;admin", "host/" + str(uuid.uuid4())])
async def test_nobody_but_a_scheduler_may_probe(hosts: tuple[Host, Host], caller: str) -> None:
    name = str(uuid.uuid4())
    async with open_channel(hosts[0].settings.listen, None, insecure_identity=caller) as channel:
        probes: ProbeServiceAsyncStub = ProbeServiceStub(channel)
        for call in (
            probes.DescribeGuest(pb.DescribeGuestRequest(instance_id=INSTANCE)),
            probes.AssessGuest(question(pb.GuestFacts())),
            probes.ResolveHost(pb.ResolveHostRequest(hostname="b")),
            probes.Listen(pb.ListenRequest(nonce=NONCE)).read(),
            probes.Connect(pb.ConnectRequest(address="127.0.0.1", port=1, nonce=NONCE)),
            probes.OpenLibvirt(pb.OpenLibvirtRequest(hostname="b", transport="tls")),
            probes.WriteNonce(pb.WriteNonceRequest(pool="shared", name=name, content=NONCE)),
            probes.ReadNonce(pb.ReadNonceRequest(pool="shared", name=name)),
            probes.RemoveNonce(pb.RemoveNonceRequest(pool="shared", name=name)),
            probes.MeasureDirtyRate(pb.MeasureDirtyRateRequest(instance_id=INSTANCE)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert from_rpc_error(refused.value).reason is Reason.PERMISSION_DENIED
    assert hosts[0].nonces == []

"""How hosts in memory answer the probes of preflight: everything holds, until a test breaks one thing."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from remuda.agent.v1 import probe_pb2 as pb

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, InstanceId
from remuda_core.testing.hosts import FakeHosts

GIB = 1 << 30
LIBVIRT, QEMU = 9_000_000, 7_002_022


def _disks() -> list[pb.GuestDisk]:
    system = pb.GuestDisk(target="vda", format="qcow2", source="disk", capacity_bytes=GIB)
    drive = pb.GuestDisk(target="vdb", format="raw", source="config", config_drive=True)
    for disk in (system, drive):
        disk.device, disk.bus = "disk", "virtio"
    return [system, drive]


@dataclass(slots=True, kw_only=True)
class FakeSight:
    """What one host shows when it is probed."""

    name: str
    address: str
    storage: dict[str, str] = field(default_factory=dict)
    """Pool to what is mounted there: equal means the same files, whatever is claimed."""
    cpu: pb.AssessGuestResponse.Cpu.ValueType = pb.AssessGuestResponse.CPU_IDENTICAL
    cpu_detail: str = ""
    machine_types: list[str] = field(default_factory=lambda: ["pc-q35-7.2"])
    libvirt_version: int = LIBVIRT
    qemu_version: int = QEMU
    bridges: dict[str, str] = field(default_factory=lambda: {"physnet": "br0"})
    available_bytes: int = 100 * GIB
    base_image_problem: str = ""
    hosts_file: dict[str, list[str]] = field(default_factory=dict)
    """Names that it resolves otherwise than the others do."""
    ports_blocked: bool = False
    libvirt_closed: bool = False
    disks: list[pb.GuestDisk] = field(default_factory=_disks)
    host_devices: list[str] = field(default_factory=list)
    dirty_bytes_per_second: int | None = None
    """The last known rate."""
    refusal: RemudaError | None = None
    """Its answer to every probe."""
    hanging: set[str] = field(default_factory=set)
    """Probes that get no answer until their deadline."""


class FakeProbes:
    """Implements the scheduler's port `ProbeAgents`. Silence is that of the hosts themselves."""

    def __init__(self, hosts: FakeHosts) -> None:
        self.hosts = hosts
        self.sights: dict[HostId, FakeSight] = {}
        self.log: list[tuple[HostId, str]] = []
        """(host, what it was asked), in order."""
        self.files: dict[tuple[str, str], bytes] = {}
        """(storage, name) to content: what a probe has left, once all is over."""
        self.listeners: dict[int, asyncio.Queue[bytes]] = {}
        """Open ports, with what came in."""
        self.measured_bytes_per_second = 0

    async def describe_guest(
        self, host: HostId, request: pb.DescribeGuestRequest, seconds: float
    ) -> pb.DescribeGuestResponse:
        sight = await self._ask(host, "describe_guest", seconds)
        if InstanceId(request.instance_id) not in self.hosts.hosts[host].domains:
            raise RemudaError(Reason.INSTANCE_NOT_FOUND, f"{sight.name} runs no such guest")
        guest = pb.GuestFacts(
            cpu_xml="<cpu/>",
            machine_type="pc-q35-7.2",
            domain_type="qemu",
            disks=sight.disks,
            host_devices=sight.host_devices,
            memory_bytes=128 << 20,
            dirty_bytes_per_second=sight.dirty_bytes_per_second,
            libvirt_version=sight.libvirt_version,
            qemu_version=sight.qemu_version,
        )
        return pb.DescribeGuestResponse(guest=guest)

    async def assess_guest(
        self, host: HostId, request: pb.AssessGuestRequest, seconds: float
    ) -> pb.AssessGuestResponse:
        sight = await self._ask(host, "assess_guest", seconds)
        return pb.AssessGuestResponse(
            cpu=sight.cpu,
            cpu_detail=sight.cpu_detail,
            machine_type_offered=request.guest.machine_type in sight.machine_types,
            machine_types=sight.machine_types,
            libvirt_version=sight.libvirt_version,
            qemu_version=sight.qemu_version,
            domain_type="qemu",
            bridges=sight.bridges,
            pool_available_bytes=sight.available_bytes,
            pool_uid=sight.storage.get(request.pool, ""),
            base_image_problem=sight.base_image_problem,
        )

    async def resolve_host(
        self, host: HostId, request: pb.ResolveHostRequest, seconds: float
    ) -> pb.ResolveHostResponse:
        sight = await self._ask(host, "resolve_host", seconds)
        known = {one.name: [one.address] for one in self.sights.values()} | sight.hosts_file
        found = known.get(request.hostname, [])
        return pb.ResolveHostResponse(addresses=found, error="" if found else "Name or service not known")

    async def listen(
        self, host: HostId, request: pb.ListenRequest, seconds: float
    ) -> AsyncGenerator[pb.ListenResponse, None]:
        sight = await self._ask(host, "listen", seconds)
        port = 49152 + len(self.listeners)
        came_in = self.listeners.setdefault(port, asyncio.Queue())
        try:
            yield pb.ListenResponse(address=sight.address, port=port)
            heard = await came_in.get()
            yield pb.ListenResponse(heard=heard == request.nonce, peer="192.0.2.1:40000")
        finally:
            del self.listeners[port]

    async def connect(self, host: HostId, request: pb.ConnectRequest, seconds: float) -> pb.ConnectResponse:
        await self._ask(host, "connect", seconds)
        target = next(one for one in self.sights.values() if one.address == request.address)
        if target.ports_blocked:
            return pb.ConnectResponse(error="no answer within 3 s")
        self.listeners[request.port].put_nowait(request.nonce)
        return pb.ConnectResponse(connected=True, duration_ms=1)

    async def open_libvirt(
        self, host: HostId, request: pb.OpenLibvirtRequest, seconds: float
    ) -> pb.OpenLibvirtResponse:
        await self._ask(host, "open_libvirt", seconds)
        target = next(one for one in self.sights.values() if one.name == request.hostname)
        if target.libvirt_closed:
            return pb.OpenLibvirtResponse(error="unable to connect to server: Connection refused")
        return pb.OpenLibvirtResponse(hostname=target.name)

    async def write_nonce(
        self, host: HostId, request: pb.WriteNonceRequest, seconds: float
    ) -> pb.WriteNonceResponse:
        sight = await self._ask(host, "write_nonce", seconds)
        self.files[sight.storage[request.pool], request.name] = request.content
        return pb.WriteNonceResponse(pool_uid=sight.storage[request.pool])

    async def read_nonce(
        self, host: HostId, request: pb.ReadNonceRequest, seconds: float
    ) -> pb.ReadNonceResponse:
        sight = await self._ask(host, "read_nonce", seconds)
        content = self.files.get((sight.storage[request.pool], request.name), b"")
        return pb.ReadNonceResponse(content=content)

    async def remove_nonce(
        self, host: HostId, request: pb.RemoveNonceRequest, seconds: float
    ) -> pb.RemoveNonceResponse:
        sight = await self._ask(host, "remove_nonce", seconds)
        self.files.pop((sight.storage[request.pool], request.name), None)
        return pb.RemoveNonceResponse()

    async def measure_dirty_rate(
        self, host: HostId, request: pb.MeasureDirtyRateRequest, seconds: float
    ) -> pb.MeasureDirtyRateResponse:
        sight = await self._ask(host, "measure_dirty_rate", seconds)
        if InstanceId(request.instance_id) not in self.hosts.hosts[host].domains:
            raise RemudaError(Reason.INSTANCE_NOT_FOUND, f"{sight.name} runs no such guest")
        return pb.MeasureDirtyRateResponse(dirty_bytes_per_second=self.measured_bytes_per_second)

    async def _ask(self, host: HostId, what: str, seconds: float) -> FakeSight:
        self.log.append((host, what))
        await self.hosts.answer_probe(host)
        sight = self.sights[host]
        if what in sight.hanging:
            await asyncio.sleep(seconds)
            raise RemudaError(Reason.HOST_UNREACHABLE, f"no answer from {host} within {seconds:.0f} s")
        if sight.refusal is not None:
            raise sight.refusal
        return sight

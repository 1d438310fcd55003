"""Two hosts of each driver. `hosts` runs every test on the fake and, as root, on real libvirt in the lab."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import uuid
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Protocol

import libvirt
import pytest
import pytest_asyncio
from remuda_agent.hypervisor import (
    DomainDescription,
    DomainNic,
    GuestFacts,
    Hypervisor,
    MigrationRequest,
    hypervisor_error,
)
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor, FakeTimings
from remuda_agent.hypervisor.libvirt import open_libvirt
from remuda_agent.probe.domain_type import DomainType
from remuda_core.ids import Epoch, InstanceId, OperationId
from remuda_lab.commands import run
from remuda_lab.guest import ConfigDrive, GuestImage, Nic, write_config_drive
from remuda_lab.guest_view import GuestView
from remuda_lab.lab import Lab
from remuda_lab.layout import LOCAL_POOL, SHARED_POOL
from remuda_lab.testing import bare_lab, guest_image

from tests.contract.hypervisor.thawing import Frozen, freeze

__all__ = ["bare_lab", "guest_image"]

LAB_TIMEOUT_SECONDS = 480
FAKE_MEMORY_MIB = 24


class Hosts(Protocol):
    """Two hosts that can migrate to each other, `a` to `b`."""

    driver: str
    a: Hypervisor
    b: Hypervisor

    def described(self, *, shared: bool = False, bootable: bool = False) -> DomainDescription:
        """A new guest whose files are on `a`; `bootable`: it comes up and has a guest agent."""
        ...

    async def wait_booted(self, guest: DomainDescription) -> None:
        """Until the guest's user space answers."""
        ...

    def receive(self, guest: DomainDescription) -> None:
        """Files on `b`, as PrepareIncoming leaves them."""
        ...

    def bridge(self, name: str) -> None:
        """A bridge that only `b` has."""
        ...

    async def plugged(self, guest: DomainDescription) -> list[str]:
        """The bridges of the guest on `b`: of the running copy, then of the definition."""
        ...

    def slow(self) -> None:
        """Migrations from now on take long enough to look at and to abort."""
        ...

    def request(self, guest: DomainDescription, *, shared: bool = False) -> MigrationRequest:
        """`guest` from `a` to `b`, epoch 2."""
        ...

    def kill_qemu(self, guest: DomainDescription) -> None:
        """On `a`, with SIGKILL."""
        ...

    async def opened(self, hostname: str, *, transport: str = "tls", patience: float = 20.0) -> str:
        """`a` opens the libvirt of `hostname`: the host name that it said. Raises as the driver does."""
        ...

    def refuse_peers(self) -> str:
        """Nothing listens on `b` for the transport that is returned."""
        ...

    def cut_off(self, *, again: bool = False) -> None:
        """`b` loses its network; `again`: it has it again."""
        ...

    def beyond(self, guest: GuestFacts) -> tuple[GuestFacts, str]:
        """The guest with a CPU that `b` cannot give, and a word of what it lacks."""
        ...

    def reopened(self) -> AbstractAsyncContextManager[Hypervisor]:
        """Another connection to `a`, as a restarted agent has it."""
        ...


def _request(guest: DomainDescription, *, shared: bool) -> MigrationRequest:
    return MigrationRequest(
        instance_id=guest.instance_id,
        operation_id=OperationId(str(uuid.uuid4())),
        target_epoch=Epoch(guest.epoch + 1),
        target_hostname="host2",
        shared_disks=shared,
    )


@dataclass
class FakeHosts:
    fabric: FakeFabric
    driver: str = "fake"
    a: Hypervisor = field(init=False)
    b: Hypervisor = field(init=False)

    def __post_init__(self) -> None:
        self.a = FakeHypervisor(self.fabric, "host1")
        self.b = FakeHypervisor(self.fabric, "host2")

    def described(self, *, shared: bool = False, bootable: bool = False) -> DomainDescription:
        # Small: every byte of it takes real time under a cap.
        return replace(_describe(LOCAL_POOL, 10), memory_mib=FAKE_MEMORY_MIB)

    async def wait_booted(self, guest: DomainDescription) -> None:
        await asyncio.sleep(0)

    def receive(self, guest: DomainDescription) -> None:
        """The fake opens no files."""

    def bridge(self, name: str) -> None:
        """The fake has no interfaces."""

    async def plugged(self, guest: DomainDescription) -> list[str]:
        domain = self.fabric.domain("host2", guest.instance_id)
        assert domain is not None
        return [
            nic.bridge for copy in (domain.live, domain.definition) if copy is not None for nic in copy.nics
        ]

    def slow(self) -> None:
        self.fabric.timings = FakeTimings(migrate_disks=0.5, migrate_memory=30, switch_over=0.1)

    def request(self, guest: DomainDescription, *, shared: bool = False) -> MigrationRequest:
        return _request(guest, shared=shared)

    def kill_qemu(self, guest: DomainDescription) -> None:
        self.fabric.kill_qemu("host1", guest.instance_id)

    async def opened(self, hostname: str, *, transport: str = "tls", patience: float = 20.0) -> str:
        return await self.a.open_peer(hostname, transport=transport, patience=patience)

    def refuse_peers(self) -> str:
        with self.fabric.transaction() as world:
            world.host("host2").libvirt_listens = False
        return "tls"

    def cut_off(self, *, again: bool = False) -> None:
        (self.fabric.heal if again else self.fabric.cut)("host2")

    def beyond(self, guest: GuestFacts) -> tuple[GuestFacts, str]:
        with self.fabric.transaction() as world:
            world.host("host2").cpu_missing_features = ["avx2"]
        return guest, "avx2"

    @asynccontextmanager
    async def reopened(self) -> AsyncIterator[Hypervisor]:
        yield FakeHypervisor(self.fabric, "host1")


@dataclass
class LabHosts:
    """host1 and host2 of a lab; only these two share a pool."""

    lab: Lab
    image: GuestImage
    a: Hypervisor
    b: Hypervisor
    driver: str = "libvirt"
    bandwidth: int = 0
    addresses: dict[str, IPv4Address] = field(default_factory=dict)
    frozen: dict[bool, Frozen] = field(default_factory=dict)
    """Those that have booted; on the shared pool, or not."""

    def described(self, *, shared: bool = False, bootable: bool = False) -> DomainDescription:
        if bootable and (known := self.frozen.get(shared)):
            self.addresses[known.guest.instance_id] = known.address
            self._make_files("host1", known.guest, shared=shared)
            known.put_back(self.lab, self._outside("host1", known.guest.disk.parent, shared=shared))
            return known.guest
        guest = _describe(SHARED_POOL if shared else LOCAL_POOL, 50 + uuid.uuid4().int % 150)
        address = IPv4Address(f"10.78.0.{50 + uuid.uuid4().int % 150}")
        self.addresses[guest.instance_id] = address
        self._make_files("host1", guest, shared=shared)
        nic = Nic(mac=guest.nics[0].mac_address, address=IPv4Interface(f"{address}/24"))
        drive = ConfigDrive(uuid=guest.instance_id, hostname="guest", nics=(nic,))
        write_config_drive(self._outside("host1", guest.config_drive, shared=shared), drive)
        return guest

    async def wait_booted(self, guest: DomainDescription) -> None:
        address = self.addresses[guest.instance_id]
        view = GuestView(init=self.lab.fabric().init, address=address)
        await asyncio.to_thread(view.wait_up, timeout=240)
        shared = guest.disk.is_relative_to(SHARED_POOL)
        if shared not in self.frozen:
            files = self._outside("host1", guest.disk.parent, shared=shared)
            self.frozen[shared] = await freeze(self.lab, guest, address, files)
            self.frozen[shared].put_back(self.lab, files)
            await self.a.start(guest.instance_id)
            await asyncio.to_thread(view.wait_up, timeout=240)

    def receive(self, guest: DomainDescription) -> None:
        self._make_files("host2", guest, shared=False)
        with self._outside("host2", guest.config_drive, shared=False).open("wb") as drive:
            drive.truncate(8 << 20)

    def bridge(self, name: str) -> None:
        self.lab.host("host2").run(["ip", "link", "add", name, "type", "bridge"])
        self.lab.host("host2").run(["ip", "link", "set", name, "up"])

    async def plugged(self, guest: DomainDescription) -> list[str]:
        def look() -> list[str]:
            connection = libvirt.open(self.lab.host("host2").libvirt_uri)
            try:
                domain = connection.lookupByUUIDString(guest.instance_id)
                texts = [domain.XMLDesc(0), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)]
            finally:
                connection.close()
            found = (ET.fromstring(text).find("devices/interface/source") for text in texts)  # noqa: S314
            return [source.get("bridge", "") for source in found if source is not None]

        return await asyncio.to_thread(look)

    def slow(self) -> None:
        self.bandwidth = 2

    def request(self, guest: DomainDescription, *, shared: bool = False) -> MigrationRequest:
        asked = _request(guest, shared=shared)
        address = str(self.lab.plan("host2").address)
        return replace(asked, target_address=address, bandwidth_mib_s=self.bandwidth)

    def kill_qemu(self, guest: DomainDescription) -> None:
        self.lab.send_signal("host1", f"qemu:{guest.instance_id}")

    async def opened(self, hostname: str, *, transport: str = "tls", patience: float = 20.0) -> str:
        # The driver of the tests is not inside the host, whose network and certificates it needs here.
        arguments = json.dumps([hostname, transport, patience])
        argv = [sys.executable, "-c", OPEN_PEER, arguments]
        said = await asyncio.to_thread(self.lab.host("host1").run, argv)
        name, error = json.loads(said.splitlines()[-1])
        if error:
            raise hypervisor_error(error)
        return str(name)

    def refuse_peers(self) -> str:
        return "tcp"

    def cut_off(self, *, again: bool = False) -> None:
        (self.lab.heal if again else self.lab.cut)("host2")

    def beyond(self, guest: GuestFacts) -> tuple[GuestFacts, str]:
        model = "<cpu mode='custom' match='exact'><model>Skylake-Server</model></cpu>"
        return replace(guest, cpu_xml=model), "avx512"

    def reopened(self) -> AbstractAsyncContextManager[Hypervisor]:
        return open_libvirt(self.lab.host("host1").libvirt_uri, TCG)

    def _outside(self, host: str, path: Path, *, shared: bool) -> Path:
        """A path inside the host, seen from the machine."""
        if shared:
            return self.lab.paths.shared_pool / path.relative_to(SHARED_POOL)
        return self.lab.paths.host(host).local_pool / path.relative_to(LOCAL_POOL)

    def _make_files(self, host: str, guest: DomainDescription, *, shared: bool) -> None:
        directory = guest.disk.parent
        # One that is thawed was here before.
        shutil.rmtree(self._outside(host, directory, shared=shared), ignore_errors=True)
        self._outside(host, directory, shared=shared).mkdir(parents=True)
        base = directory.parent / "contract.raw"
        outside = self._outside(host, base, shared=shared)
        if not outside.exists():
            run(["cp", "--sparse=always", str(self.image.raw), str(outside)])
        self.lab.host(host).run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(guest.disk)]
        )


OPEN_PEER = """
import asyncio, json, sys
from remuda_agent.hypervisor.libvirt.connection import start_event_loop
from remuda_agent.hypervisor.libvirt.peer import Peers
from remuda_core.errors import RemudaError
hostname, transport, patience = json.loads(sys.argv[1])
start_event_loop()
try:
    said = asyncio.run(Peers().hostname(hostname, transport=transport, patience=patience)), ""
except RemudaError as error:
    said = "", error.message
print(json.dumps(said))
"""

TCG = DomainType(name="qemu", reason="the lab's guests are small", proven=True)


def _describe(pool: str, number: int) -> DomainDescription:
    instance = str(uuid.uuid4())
    directory = Path(pool) / "instances" / instance
    return DomainDescription(
        instance_id=InstanceId(instance),
        title=f"projects/demo/instances/{instance}",
        epoch=Epoch(1),
        operation_id=OperationId(str(uuid.uuid4())),
        vcpus=1,
        memory_mib=96,
        disk=directory / "disk.qcow2",
        config_drive=directory / "config.img",
        console=Path("/var/log/libvirt/qemu") / f"{instance}.console",
        nics=(DomainNic(mac_address=f"52:54:00:12:34:{number:02x}", bridge="br0"),),
    )


async def _forget_all(hypervisor: Hypervisor) -> None:
    for view in await hypervisor.domains():
        await hypervisor.destroy(view.instance_id)
        await hypervisor.undefine(view.instance_id)


@pytest.fixture(scope="session")
def frozen() -> dict[bool, Frozen]:
    return {}


@pytest_asyncio.fixture(
    params=[
        "fake",
        pytest.param("libvirt", marks=[pytest.mark.root, pytest.mark.timeout(LAB_TIMEOUT_SECONDS)]),
    ]
)
async def hosts(request: pytest.FixtureRequest) -> AsyncIterator[Hosts]:
    if request.param == "fake":
        yield FakeHosts(FakeFabric())
        return
    lab: Lab = request.getfixturevalue("bare_lab")
    image: GuestImage = request.getfixturevalue("guest_image")
    frozen: dict[bool, Frozen] = request.getfixturevalue("frozen")
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(open_libvirt(lab.host("host1").libvirt_uri, TCG))
        b = await stack.enter_async_context(open_libvirt(lab.host("host2").libvirt_uri, TCG))
        try:
            yield LabHosts(lab=lab, image=image, a=a, b=b, frozen=frozen)
        finally:
            await _forget_all(a)
            await _forget_all(b)

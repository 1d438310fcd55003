"""Which hypervisor this host has: the one place that chooses a driver."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from remuda_agent.hypervisor import Hypervisor
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor
from remuda_agent.settings import AgentSettings


@asynccontextmanager
async def open_hypervisor(settings: AgentSettings) -> AsyncIterator[Hypervisor]:
    """The driver that the settings name, until the context is left."""
    if settings.hypervisor == "fake":
        fabric = FakeFabric(file=settings.fake_world or settings.state_dir / "fake-world.json")
        fake = FakeHypervisor(fabric, settings.name)
        try:
            async with fabric.awake():
                yield fake
        finally:
            fake.close()
        return
    # Imported here: the fake must run where libvirt's library is not installed.
    from remuda_agent.hypervisor.libvirt import open_libvirt

    async with open_libvirt(settings.libvirt_uri, domain_type=settings.domain_type) as driver:
        yield driver

"""Which hypervisor this host has: the one place that chooses a driver."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from remuda_agent.hypervisor import Hypervisor
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor, FakeTimings
from remuda_agent.probe.domain_type import choose_domain_type
from remuda_agent.settings import AgentSettings

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_hypervisor(settings: AgentSettings) -> AsyncIterator[Hypervisor]:
    """The driver that the settings name, until the context is left."""
    if settings.hypervisor == "fake":
        fabric = FakeFabric(
            file=settings.fake_world or settings.state_dir / "fake-world.json",
            timings=FakeTimings(**settings.fake_timings.model_dump()),
        )
        fake = FakeHypervisor(fabric, settings.name)
        try:
            async with fabric.awake():
                yield fake
        finally:
            fake.close()
        return
    # Imported here: the fake must run where libvirt's library is not installed.
    from remuda_agent.hypervisor.libvirt import open_libvirt

    domain_type = await choose_domain_type(setting=settings.domain_type)
    tell = _log.info if domain_type.proven else _log.warning
    tell("domain type", name=domain_type.name, reason=domain_type.reason, proven=domain_type.proven)
    async with open_libvirt(settings.libvirt_uri, domain_type) as driver:
        yield driver

"""What this host has for guests."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Protocol

from remuda.compute.v1.host_pb2 import HostInventory, HostPool

from remuda_agent.hypervisor import Hypervisor
from remuda_agent.overrides import FactsOverride
from remuda_agent.settings import AgentSettings


class InventorySource(Protocol):
    """Gives the inventory as it is now."""

    async def now(self) -> HostInventory: ...


class PoolFacts(Protocol):
    """What the inventory asks of the pools: uid, capacity and free bytes of each."""

    def describe(self) -> list[HostPool]: ...


class NetworkFacts(Protocol):
    """What the inventory asks of the bridges: the physical networks that guests can be plugged into now."""

    def physical_networks(self) -> list[str]: ...


class Inventory:
    """Built from the hypervisor, the pools and the settings."""

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        pools: PoolFacts,
        bridges: NetworkFacts,
        settings: AgentSettings,
        override: FactsOverride,
        warnings: Callable[[], list[str]] = list,
    ) -> None:
        """`warnings`: what else people have to know about the host now."""
        self._override = override
        self._warnings = warnings
        self._bridges = bridges
        self._hypervisor = hypervisor
        self._pools = pools
        self._settings = settings

    async def now(self) -> HostInventory:
        offered = self._override.capabilities(await self._hypervisor.capabilities())
        settings = self._settings
        return HostInventory(
            vcpus=int(offered.vcpus * settings.vcpu_overcommit),
            memory_mib=max(0, offered.memory_mib - settings.reserved_memory_mib),
            pools=self._pools.describe(),
            physical_networks=self._bridges.physical_networks(),
            domain_type=offered.domain_type,
            architecture=offered.architecture,
            cpu_model=offered.cpu_model,
            libvirt_version=offered.libvirt_version,
            qemu_version=offered.qemu_version,
            agent_version=version("remuda-agent"),
            migration_address=settings.migration.address,
            migration_transport=settings.migration.transport,
            machine_types=offered.machine_types,
            hypervisor=offered.driver,
            warnings=self._override.warnings + self._warnings(),
        )


def without_free_space(inventory: HostInventory) -> HostInventory:
    """For comparison: free space changes all the time and is not worth a write."""
    fixed = HostInventory()
    fixed.CopyFrom(inventory)
    for pool in fixed.pools:
        pool.available_bytes = 0
    return fixed

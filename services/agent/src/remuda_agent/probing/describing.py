"""What a guest that runs here is made of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from remuda.agent.v1 import probe_pb2 as pb
from remuda_core.ids import InstanceId
from remuda_core.rpc.context import timeout_for

from remuda_agent.bounded_calls import BoundedCalls
from remuda_agent.disks.pools import Pools
from remuda_agent.hypervisor import GuestDisk, GuestFacts, Hypervisor
from remuda_agent.overrides import FactsOverride

STAT_SECONDS = 5.0
_CONFIG_DRIVE = "config"
"""Stem of its file, whatever its format: config.img, config.iso."""
_BLOCK = 512
"""st_blocks counts in these, whatever the file system's own blocks are."""


class GuestDescriber:
    """Joins what the hypervisor says of a guest with what its files take on this host."""

    def __init__(self, *, hypervisor: Hypervisor, pools: Pools, override: FactsOverride) -> None:
        self._hypervisor = hypervisor
        self._pools = pools
        self._override = override
        self._files = BoundedCalls("stat")

    async def describe(self, instance_id: InstanceId) -> pb.GuestFacts:
        """Raises DomainMissing, HYPERVISOR_ERROR."""
        guest = await self._hypervisor.describe_guest(instance_id)
        here = self._override.capabilities(await self._hypervisor.capabilities())
        directories = [pool.instances / instance_id for pool in self._pools]
        taken = await self._taken(disk.source for disk in guest.disks)
        return pb.GuestFacts(
            cpu_xml=guest.cpu_xml,
            machine_type=guest.machine_type,
            domain_type=guest.domain_type,
            architecture=guest.architecture,
            disks=[_disk(disk, directories, taken.get(disk.source, 0)) for disk in guest.disks],
            host_devices=guest.host_devices,
            memory_bytes=guest.memory_bytes,
            dirty_bytes_per_second=guest.dirty_bytes_per_second,
            libvirt_version=here.libvirt_version,
            qemu_version=here.qemu_version,
        )

    async def _taken(self, sources: Iterable[str]) -> dict[str, int]:
        """Bytes on the file system; nothing where that cannot be said, which must not hide the rest."""
        paths = [source for source in sources if source.startswith("/")]
        try:
            return await self._files.call(
                lambda: {path: _allocated(Path(path)) for path in paths}, seconds=timeout_for(STAT_SECONDS)
            )
        except TimeoutError:
            return {}


def facts_of(guest: pb.GuestFacts) -> GuestFacts:
    """For a hypervisor that is asked about another host's guest."""
    return GuestFacts(
        cpu_xml=guest.cpu_xml,
        machine_type=guest.machine_type,
        domain_type=guest.domain_type,
        architecture=guest.architecture,
        disks=(),
        host_devices=tuple(guest.host_devices),
        memory_bytes=guest.memory_bytes,
        dirty_bytes_per_second=None,
    )


def _disk(disk: GuestDisk, directories: list[Path], allocation: int) -> pb.GuestDisk:
    source = Path(disk.source)
    ours = source.parent in directories
    return pb.GuestDisk(
        target=disk.target,
        device=disk.device,
        bus=disk.bus,
        readonly=disk.readonly,
        format=disk.format,
        source=source.name if ours else disk.source,
        capacity_bytes=disk.capacity_bytes,
        allocation_bytes=allocation,
        config_drive=ours and source.stem == _CONFIG_DRIVE,
    )


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * _BLOCK
    except OSError:
        return 0

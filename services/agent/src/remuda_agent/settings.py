"""What an operator configures on a host. Precedence: defaults < TOML < REMUDA_AGENT_... < flags."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from remuda_core.config import ServiceSettings
from remuda_core.migration.ladder import FIRST_DOWNTIME_MS, STALL_SECONDS, Pace


class PoolSettings(BaseModel):
    """A directory that holds instances' disks."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    path: Path
    shared: bool = False
    """Other hosts mount the same storage; which ones is told by the uid file in its root."""
    base_cache_bytes: int = Field(default=0, ge=0)
    """Base images are evicted, least recently used first, until they take no more; 0: base_cache_share says.
    What is in use stays; on a shared pool every base image does.
    """
    base_cache_share: float = Field(default=0.25, gt=0, le=1)
    """The same as a share of the pool's capacity."""


class MigrationSettings(BaseModel):
    """How migrations come in and go out."""

    transport: Literal["tls", "tcp"] = "tls"
    address: str = ""
    """Memory and disks come in here; empty: the host name is resolved by the source."""
    port_min: int = 49152
    port_max: int = 49215
    first_downtime_ms: int = Field(default=FIRST_DOWNTIME_MS, gt=0)
    """Pause asked of QEMU at the start; the ladder doubles it up to what the request allows."""
    stall_seconds: float = Field(default=STALL_SECONDS, gt=0)
    """Without progress for so long the ladder takes its next rung."""

    @property
    def pace(self) -> Pace:
        return Pace(first_downtime_ms=self.first_downtime_ms, stall_seconds=self.stall_seconds)


class FakeTimingSettings(BaseModel):
    """How long things take on fake hosts, in seconds; a migration's bandwidth counts on top."""

    boot: float = 0.0
    shutdown: float = 0.0
    migrate_disks: float = 0.0
    migrate_memory: float = 0.0
    switch_over: float = 0.0
    enough_downtime_ms: int = 0


class AgentSettings(ServiceSettings):
    """One host."""

    name: str
    """Host name as registered, and as the other hosts resolve it."""
    host_uuid: str
    advertise: str = ""
    """host:port where the leader reaches this agent; empty: `name` (a loopback address as it is) and the port
    it listens on.
    """
    schedulers: tuple[str, ...]
    image_stores: tuple[str, ...] = ()
    state_dir: Path = Path("/var/lib/remuda")
    hypervisor: Literal["libvirt", "fake"] = "libvirt"
    libvirt_uri: str = "qemu:///system"
    fake_world: Path | None = None
    """File that fake hosts share; None: one of this host's own in state_dir."""
    fake_hosts: dict[str, str] = Field(default_factory=dict)
    """Host name to address, for a fake host: its hosts file, before the machine's own resolver."""
    fake_timings: FakeTimingSettings = Field(default_factory=FakeTimingSettings)
    lab: bool = False
    """This host is part of a lab: it may be told to lie about itself."""
    facts_override: Path | None = Field(
        default=None,
        description="file of facts that this host tells instead of its own; refused unless lab = true",
    )
    """See remuda_agent.overrides."""
    domain_type: Literal["", "kvm", "qemu"] = ""
    """Empty: probe by running a guest."""
    console_dir: Path = Path("/var/log/libvirt/qemu")
    enrolment_token: str = ""
    boot_id_file: Path = Path("/proc/sys/kernel/random/boot_id")
    """Where hosts are namespaces the kernel's id is the machine's: a lab draws one per boot into a file."""
    pools: tuple[PoolSettings, ...] = Field(min_length=1)
    bridges: dict[str, str] = Field(default_factory=dict)
    """Physical network to bridge."""
    migration: MigrationSettings = Field(default_factory=MigrationSettings)
    vcpu_overcommit: float = Field(default=4.0, gt=0)
    """vCPUs offered per CPU of the host."""
    reserved_memory_mib: int = Field(default=1024, ge=0)
    """Kept for the host itself."""

"""What an operator configures of a scheduler. Precedence: defaults < TOML < REMUDA_SCHEDULER_... < flags."""

from pathlib import Path

from pydantic import Field
from remuda_core.config import EtcdSettings, Section, ServiceSettings


class MigrationLimits(Section):
    """How many moves may be under way at the same time; 0: no limit. The rest wait for their turn."""

    outgoing_per_host: int = Field(default=2, ge=0)
    incoming_per_host: int = Field(default=2, ge=0)
    cluster: int = Field(default=0, ge=0)
    link: int = Field(default=0, ge=0)
    """From one certain host to another certain one."""


class SchedulerSettings(ServiceSettings):
    """One candidate."""

    name: str
    """For people: which scheduler leads."""
    advertise: str
    """host:port where agents and the api reach this scheduler; stands in the leader key."""
    etcd: EtcdSettings = Field(default_factory=EtcdSettings)
    election_ttl_seconds: int = Field(default=5, ge=2)
    """A leader that is killed is followed by the next within about this time."""
    heartbeat_interval_ms: int = Field(default=1000, ge=100)
    unreachable_after_seconds: float = Field(default=10.0, gt=0)
    """A host that is silent for so long gets nothing placed on it."""
    grant_key: Path
    """Ed25519 private key (PEM) that signs image grants."""
    grant_seconds: float = Field(default=3600.0, gt=0)
    probe_reuse_seconds: float = Field(default=30.0, ge=0)
    """How long preflight may use a probe of two hosts again, and how long a move may wait for its turn before
    it is checked again. 0: no probe is used twice, and every move is checked twice.
    """
    migration_limits: MigrationLimits = Field(default_factory=MigrationLimits)
    patience_seconds: float = Field(default=60.0, gt=0)
    """How long an operation waits for a host that does not answer before it fails, or owes its clean-up."""

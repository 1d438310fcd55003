"""What preflight knows of one move to one host. No I/O, no clock: conditions are functions of this.

Answers of agents stand here as the messages they came in (probe.proto); nobody changes them.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from remuda.agent.v1.probe_pb2 import (
    AssessGuestResponse,
    GuestFacts,
    OpenLibvirtResponse,
    ResolveHostResponse,
)

from remuda_scheduler.placement.model import Demand, HostFacts

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """It could not be found out."""

    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe(Generic[T]):
    """One thing that was asked of a host, or of two."""

    found: T | NoAnswer
    seen_at: datetime
    duration_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSide:
    """One of the two hosts, as the leader knows it without asking."""

    placement: HostFacts
    agent_version: str
    migration_address: str
    libvirt_version: int
    """As virConnectGetLibVersion counts: 9000000 is 9.0.0; 0: not reported."""
    qemu_version: int

    @property
    def name(self) -> str:
        return self.placement.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What is to be moved, and how it was asked for."""

    demand: Demand
    allow_version_skew: bool = False
    max_downtime_ms: int = 300
    bandwidth_mib_s: int = 0
    """0: no cap was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The source's try to connect to a port of the target's migration range."""

    address: str
    port: int
    heard: bool
    """The target got what the source sent."""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFile:
    """A file that the target wrote into the pool and the source looked for."""

    pool_uid: str = ""
    """Of the pool at the target, asked as it was written."""
    read: bool = False
    full: str = ""
    """Why the target had no room for it, in its words: nothing is known then of whose storage it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """All that was asked about one pair of hosts."""

    guest: Probe[GuestFacts]
    target: Probe[AssessGuestResponse]
    source: Probe[AssessGuestResponse]
    """Whether the source could take the guest back."""
    target_by_source: Probe[ResolveHostResponse]
    source_by_target: Probe[ResolveHostResponse]
    reach: Probe[Reach]
    libvirt: Probe[OpenLibvirtResponse]
    shared_file: Probe[SharedFile] | None
    """None: the pools do not even claim to be the same storage."""
    dirty_rate: Probe[int] | None
    """Bytes per second. None: never measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One candidate. `probes` is None when only the cheap conditions were looked at."""

    move: Move
    source: HostSide
    target: HostSide
    at: datetime
    """When the leader looked at what it knows."""
    probes: Probes | None = None

    @property
    def claims_same_storage(self) -> bool:
        """Both hosts report the guest's pool with the same uid: it has to be tried whether that is true."""
        name = self.move.demand.pool
        here, there = self.source.placement.pools.get(name), self.target.placement.pools.get(name)
        return here is not None and there is not None and here.uid != "" and here.uid == there.uid

    @property
    def same_storage(self) -> bool:
        """It was tried, and it is true."""
        tried = self.probes.shared_file if self.probes is not None else None
        return tried is not None and isinstance(tried.found, SharedFile) and tried.found.read

"""What placement sees and what it answers. No I/O, no clock, no protobuf."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from remuda_core.ids import HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A storage pool as one host sees it; sizes in bytes."""

    name: str
    uid: str
    shared: bool
    capacity_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One host: what it has, and what instances and open operations take of it."""

    id: HostId
    name: str
    up: bool
    state: str
    """Word for people, for example "unreachable"."""
    cordoned: bool
    vcpus: int
    memory_mib: int
    architecture: str
    domain_type: str
    migration_transport: str
    pools: Mapping[str, Pool]
    physical_networks: frozenset[str]
    machine_types: frozenset[str]
    used_vcpus: int = 0
    used_memory_mib: int = 0
    reserved_disk_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes per pool uid that open operations have reserved and not yet written."""
    instances: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is to be placed."""

    vcpus: int
    memory_mib: int
    disk_bytes: int
    pool: str = ""
    """Pool that must exist on the host; empty: any that is not shared."""
    pool_uid: str = ""
    """The very storage, when the disks stay where they are; empty: any."""
    physical_networks: frozenset[str] = frozenset()
    architecture: str = ""
    host: HostId | None = None
    """The only host that is wanted."""
    among: frozenset[HostId] | None = None
    """The only hosts that may be taken, because they were checked; None: any."""
    excluded: Mapping[HostId, str] = field(default_factory=dict)
    """Hosts that must not be taken, and why: the source, targets tried in vain."""
    domain_type: str = ""
    """A live guest cannot change between kvm and qemu (TCG)."""
    machine_type: str = ""
    """Canonical machine type that QEMU must know there; empty: any."""
    migration_transport: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What placement thinks of one host."""

    host: HostFacts
    pool: str = ""
    """The pool that would hold the disks."""
    filter: str = ""
    """Name of the filter that refused it; empty: eligible."""
    reason: str = ""
    score: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def eligible(self) -> bool:
        return not self.filter


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All verdicts, best first. `chosen` is None when no host fits."""

    chosen: Verdict | None
    verdicts: Sequence[Verdict]
    rejections: Mapping[str, int]
    """How many hosts each filter refused."""
    demand: Demand
    """What was asked for, with what follows from the source of a move."""

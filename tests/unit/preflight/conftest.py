"""A move for which everything holds, and the tools to break one thing of it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
from remuda.agent.v1.probe_pb2 import (
    AssessGuestResponse,
    GuestDisk,
    GuestFacts,
    OpenLibvirtResponse,
    ResolveHostResponse,
)
from remuda_core.ids import HostId
from remuda_scheduler.placement.model import Demand, HostFacts, Pool
from remuda_scheduler.preflight.facts import Facts, HostSide, Move, Probe, Probes, Reach

GIB = 1 << 30
MIB = 1 << 20
AT = datetime(2025, 1, 1, tzinfo=UTC)
T = TypeVar("T")

Build = Callable[..., Facts]


def seen(found: Any, *, ms: int = 7) -> Probe[Any]:
    return Probe(found=found, seen_at=AT, duration_ms=ms)


def local_pool(uid: str) -> Pool:
    return Pool(name="local", uid=uid, shared=False, capacity_bytes=100 * GIB, available_bytes=50 * GIB)


def a_host(name: str) -> HostFacts:
    return HostFacts(
        id=HostId(f"id-of-{name}"),
        name=name,
        up=True,
        state="up",
        cordoned=False,
        vcpus=8,
        memory_mib=8192,
        architecture="x86_64",
        domain_type="qemu",
        migration_transport="tls",
        pools={"local": local_pool(f"uid-of-{name}")},
        physical_networks=frozenset({"physnet"}),
        machine_types=frozenset({"pc-q35-7.2"}),
    )


def a_side(name: str, address: str) -> HostSide:
    return HostSide(
        placement=a_host(name),
        agent_version="0.1.0",
        migration_address=address,
        libvirt_version=9_000_000,
        qemu_version=7_002_022,
    )


DEMAND = Demand(
    vcpus=1,
    memory_mib=1024,
    disk_bytes=GIB,
    pool="local",
    physical_networks=frozenset({"physnet"}),
    architecture="x86_64",
    excluded={HostId("id-of-alpha"): "it is the source"},
    domain_type="qemu",
    machine_type="pc-q35-7.2",
    migration_transport="tls",
)


def a_guest(**changes: Any) -> GuestFacts:
    fields: dict[str, Any] = {
        "cpu_xml": "<cpu/>",
        "machine_type": "pc-q35-7.2",
        "domain_type": "qemu",
        "disks": [a_disk("vda"), a_disk("vdb", config_drive=True, format="raw", capacity_bytes=MIB)],
        "memory_bytes": GIB,
        "libvirt_version": 9_000_000,
        "qemu_version": 7_002_022,
        **changes,
    }
    return GuestFacts(**fields)


def a_disk(target: str, **changes: Any) -> GuestDisk:
    fields: dict[str, Any] = {
        "target": target,
        "device": "disk",
        "bus": "virtio",
        "format": "qcow2",
        "source": target,
        "capacity_bytes": GIB,
        "allocation_bytes": 100 * MIB,
        **changes,
    }
    return GuestDisk(**fields)


def an_assessment(**changes: Any) -> AssessGuestResponse:
    fields: dict[str, Any] = {
        "cpu": AssessGuestResponse.CPU_IDENTICAL,
        "machine_type_offered": True,
        "libvirt_version": 9_000_000,
        "qemu_version": 7_002_022,
        "domain_type": "qemu",
        "bridges": {"physnet": "br0"},
        "pool_available_bytes": 50 * GIB,
        "pool_uid": "uid-of-beta",
        "base_image_cached": True,
        **changes,
    }
    return AssessGuestResponse(**fields)


PROBES = Probes(
    guest=seen(a_guest()),
    target=seen(an_assessment()),
    source=seen(an_assessment()),
    target_by_source=seen(ResolveHostResponse(addresses=["192.0.2.2"])),
    source_by_target=seen(ResolveHostResponse(addresses=["192.0.2.1"])),
    reach=seen(Reach(address="192.0.2.2", port=49152, heard=True)),
    libvirt=seen(OpenLibvirtResponse(hostname="beta")),
    shared_file=None,
    dirty_rate=seen(10 * MIB),
)
FACTS = Facts(
    move=Move(demand=DEMAND),
    source=a_side("alpha", "192.0.2.1"),
    target=a_side("beta", "192.0.2.2"),
    at=AT,
    probes=PROBES,
)


def changed(
    *,
    host: dict[str, Any] | None = None,
    source_host: dict[str, Any] | None = None,
    side: dict[str, Any] | None = None,
    demand: dict[str, Any] | None = None,
    move: dict[str, Any] | None = None,
    unprobed: bool = False,
    **probes: Any,
) -> Facts:
    """FACTS with fields of the target, the demand, the move or the probes replaced."""
    target = replace(FACTS.target, placement=replace(FACTS.target.placement, **host or {}), **side or {})
    source = replace(FACTS.source, placement=replace(FACTS.source.placement, **source_host or {}))
    wanted = replace(FACTS.move, demand=replace(DEMAND, **demand or {}), **move or {})
    found: dict[str, Any] = {
        name: seen(value) if value is not None else None for name, value in probes.items()
    }
    return replace(
        FACTS,
        source=source,
        target=target,
        move=wanted,
        probes=None if unprobed else replace(PROBES, **found),
    )


@pytest.fixture
def build() -> Build:
    return changed

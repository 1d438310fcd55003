"""Placement is a pure function: every filter refuses what it should, and the plan is the best that fits."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remuda_core.ids import HostId
from remuda_scheduler.placement.explain import MAX_HOSTS, explain
from remuda_scheduler.placement.filters import FILTERS
from remuda_scheduler.placement.model import Demand, HostFacts, Pool
from remuda_scheduler.placement.place import place

GIB = 1 << 30
LOCAL = Pool(name="local", uid="u-local", shared=False, capacity_bytes=100 * GIB, available_bytes=50 * GIB)
SHARED = Pool(name="shared", uid="u-shared", shared=True, capacity_bytes=100 * GIB, available_bytes=90 * GIB)
HOST = HostFacts(
    id=HostId("a"),
    name="host-a",
    up=True,
    state="up",
    cordoned=False,
    vcpus=8,
    memory_mib=8192,
    architecture="x86_64",
    domain_type="qemu",
    migration_transport="tls",
    pools={"local": LOCAL, "shared": SHARED},
    physical_networks=frozenset({"physnet"}),
    machine_types=frozenset({"pc-q35-7.2"}),
)
DEMAND = Demand(vcpus=1, memory_mib=1024, disk_bytes=GIB, physical_networks=frozenset({"physnet"}))


def host(name: str, **changes: object) -> HostFacts:
    return replace(HOST, id=HostId(name), name=name, **changes)  # type: ignore[arg-type]


def demand(**changes: object) -> Demand:
    return replace(DEMAND, **changes)  # type: ignore[arg-type]


REFUSALS: Mapping[str, tuple[HostFacts, Demand, str]] = {
    "requested_host": (HOST, demand(host=HostId("b")), "another host"),
    "exclusion": (HOST, demand(excluded={HostId("a"): "it is the source"}), "it is the source"),
    "availability": (host("a", up=False, state="unreachable"), DEMAND, "unreachable"),
    "compatibility": (HOST, demand(machine_type="pc-q35-9.0"), "pc-q35-9.0"),
    "networks": (HOST, demand(physical_networks=frozenset({"other"})), "other"),
    "vcpus": (host("a", used_vcpus=8), DEMAND, "0 of 8 vCPUs free, 1 needed"),
    "memory": (host("a", used_memory_mib=7168), demand(memory_mib=1025), "1024 of 8192 MiB free"),
    "storage": (HOST, demand(disk_bytes=51 * GIB), "51200 MiB free, 52224 MiB needed"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_refuses_with_what_it_saw_and_what_it_needs(name: str) -> None:
    refused, asked, words = REFUSALS[name]
    plan = place([refused], asked)
    assert plan.chosen is None
    assert plan.rejections == {name: 1}
    assert words in plan.verdicts[0].reason


def test_a_host_that_fits_exactly_is_taken() -> None:
    full = host("a", used_memory_mib=7168, used_vcpus=7)
    plan = place([full], demand(memory_mib=1024, disk_bytes=50 * GIB))
    assert plan.chosen is not None
    assert plan.chosen.pool == "local"


def test_space_that_is_reserved_counts_as_taken() -> None:
    reserved = host("a", reserved_disk_bytes={"u-local": 50 * GIB})
    assert place([reserved], demand(disk_bytes=1)).rejections == {"storage": 1}


def test_a_cordoned_host_is_taken_only_when_it_is_named() -> None:
    cordoned = host("a", cordoned=True)
    assert place([cordoned], DEMAND).rejections == {"availability": 1}
    assert place([cordoned], demand(host=HostId("a"))).chosen is not None


def test_a_shared_pool_is_never_taken_unasked() -> None:
    diskless = host("a", pools={"shared": SHARED})
    assert place([diskless], DEMAND).verdicts[0].reason == "no local pool"
    named = place([diskless], demand(pool="shared"))
    assert named.chosen is not None
    assert named.chosen.pool == "shared"


def test_a_pool_of_the_same_name_on_other_storage_is_refused() -> None:
    plan = place([HOST], demand(pool="shared", pool_uid="elsewhere"))
    assert plan.rejections == {"storage": 1}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (demand(architecture="aarch64"), "architecture is x86_64, aarch64 is needed"),
        (demand(domain_type="kvm"), "domain type is qemu, kvm is needed"),
        (demand(migration_transport="tcp"), "migration transport is tls, tcp is needed"),
    ],
)
def test_a_guest_that_cannot_run_there_is_refused(asked: Demand, words: str) -> None:
    assert place([HOST], asked).verdicts[0].reason == words


def test_the_emptier_host_wins_and_a_tie_falls_to_the_first_name() -> None:
    busy = host("busy", used_memory_mib=4096, instances=4)
    chosen = place([busy, host("z"), host("b")], DEMAND).chosen
    assert chosen is not None
    assert chosen.host.name == "b"


def test_the_explanation_is_bounded_and_counts_every_host() -> None:
    crowd = [host(f"h{i:03}", used_vcpus=8) for i in range(300)] + [host("fits")]
    message = explain(place(crowd, DEMAND))
    assert len(message.hosts) == MAX_HOSTS
    assert message.hosts[0].display_name == "fits"
    assert message.chosen_host == "hosts/fits"
    assert message.considered == 301
    assert message.rejections == {"vcpus": 300}
    assert len(message.SerializeToString()) < 8192


hosts = st.lists(
    st.builds(
        host,
        st.integers(0, 99).map(lambda number: f"h{number}"),
        up=st.booleans(),
        cordoned=st.booleans(),
        used_vcpus=st.integers(0, 8),
        used_memory_mib=st.integers(0, 8192),
        instances=st.integers(0, 9),
    ),
    max_size=12,
    unique_by=lambda facts: facts.id,
)


@given(hosts, st.integers(1, 9), st.integers(1, 9000))
def test_the_plan_never_overfills_a_host_and_ignores_the_order(
    crowd: list[HostFacts], vcpus: int, memory_mib: int
) -> None:
    asked = demand(vcpus=vcpus, memory_mib=memory_mib)
    plan = place(crowd, asked)
    if plan.chosen:
        taken = plan.chosen.host
        assert taken.up
        assert not taken.cordoned
        assert taken.used_vcpus + vcpus <= taken.vcpus
        assert taken.used_memory_mib + memory_mib <= taken.memory_mib
    else:
        assert all(not verdict.eligible for verdict in plan.verdicts)
    assert place(list(reversed(crowd)), asked) == plan
    assert sum(plan.rejections.values()) + sum(v.eligible for v in plan.verdicts) == len(crowd)

"""Judging is total over facts, and never kinder than placement."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from remuda.agent.v1.probe_pb2 import OpenLibvirtResponse, ResolveHostResponse
from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.moving_pb2 import MigrationCandidate, MigrationCheck
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId
from remuda_core.migration.preflight import REFUSING, passed, preflight_failed, without_hosts, worst
from remuda_scheduler.placement.model import Pool
from remuda_scheduler.placement.place import place
from remuda_scheduler.preflight.conditions import CONDITIONS
from remuda_scheduler.preflight.facts import Facts, NoAnswer, Probes, Reach, SharedFile
from remuda_scheduler.preflight.judging import judge
from remuda_scheduler.preflight.rows import MAX_BYTES

from tests.unit.preflight.conftest import DEMAND, FACTS, GIB, a_disk, a_guest, an_assessment, changed, seen

WORDS = st.text(max_size=700)
SILENCE = st.builds(NoAnswer, words=WORDS)
VERSIONS = st.sampled_from([0, 7_002_022, 9_000_000, 9_001_000])
ADDRESSES = st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2", "127.0.1.1", "::1", "nonsense"]), max_size=3)
SIZES = st.integers(min_value=0, max_value=1 << 50)

DISKS = st.builds(
    a_disk,
    st.sampled_from(["vda", "sda"]),
    device=st.sampled_from(["disk", "cdrom", ""]),
    bus=st.sampled_from(["virtio", "sata"]),
    readonly=st.booleans(),
    source=st.sampled_from(["disk", "/elsewhere"]),
    config_drive=st.booleans(),
    capacity_bytes=SIZES,
)
GUESTS = st.builds(
    a_guest,
    machine_type=st.sampled_from(["", "pc-q35-7.2"]),
    domain_type=st.sampled_from(["", "kvm", "qemu"]),
    disks=st.lists(DISKS, max_size=3),
    host_devices=st.lists(WORDS, max_size=2),
    memory_bytes=SIZES,
    libvirt_version=VERSIONS,
    qemu_version=VERSIONS,
)
ASSESSMENTS = st.builds(
    an_assessment,
    cpu=st.integers(0, 3),
    cpu_detail=WORDS,
    machine_type_offered=st.booleans(),
    libvirt_version=VERSIONS,
    qemu_version=VERSIONS,
    domain_type=st.sampled_from(["", "kvm", "qemu"]),
    bridges=st.dictionaries(st.sampled_from(["physnet", "other"]), st.just("br0"), max_size=2),
    pool_available_bytes=SIZES,
    pool_uid=st.sampled_from(["", "nfs", "u"]),
    base_image_cached=st.booleans(),
    base_image_problem=WORDS,
    overridden=st.lists(WORDS, max_size=2),
)
RESOLVED = st.builds(ResolveHostResponse, addresses=ADDRESSES, error=WORDS)


def probe(found: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (found | SILENCE).map(seen)


PROBES = st.builds(
    Probes,
    guest=probe(GUESTS),
    target=probe(ASSESSMENTS),
    source=probe(ASSESSMENTS),
    target_by_source=probe(RESOLVED),
    source_by_target=probe(RESOLVED),
    reach=probe(
        st.builds(Reach, address=WORDS, port=st.integers(1, 65535), heard=st.booleans(), error=WORDS)
    ),
    libvirt=probe(
        st.builds(OpenLibvirtResponse, hostname=st.sampled_from(["", "alpha", "beta"]), error=WORDS)
    ),
    shared_file=st.none() | probe(st.builds(SharedFile, pool_uid=st.just("nfs"), read=st.booleans())),
    dirty_rate=st.none() | probe(SIZES),
)
POOLS = st.dictionaries(
    st.just("local"),
    st.builds(
        Pool,
        name=st.just("local"),
        uid=st.sampled_from(["", "nfs", "u"]),
        shared=st.booleans(),
        capacity_bytes=SIZES,
        available_bytes=SIZES,
    ),
    max_size=1,
)
HOSTS = st.fixed_dictionaries(
    {
        "up": st.booleans(),
        "state": st.sampled_from(["up", "unreachable", "fenced", "unknown"]),
        "cordoned": st.booleans(),
        "used_vcpus": st.integers(0, 16),
        "used_memory_mib": st.integers(0, 10_000),
        "architecture": st.sampled_from(["", "x86_64", "aarch64"]),
        "domain_type": st.sampled_from(["", "qemu", "kvm"]),
        "migration_transport": st.sampled_from(["", "tls", "tcp"]),
        "pools": POOLS,
        "physical_networks": st.sampled_from([frozenset(), frozenset({"physnet"})]),
        "machine_types": st.sampled_from([frozenset(), frozenset({"pc-q35-7.2"})]),
    }
)
DEMANDS = st.fixed_dictionaries(
    {
        "host": st.sampled_from([None, HostId("id-of-beta")]),
        "pool_uid": st.sampled_from(["", "nfs"]),
        "disk_bytes": SIZES,
        "excluded": st.sampled_from([{}, {HostId("id-of-beta"): "it was tried in vain"}]),
    }
)


@given(host=HOSTS, demand=DEMANDS, probes=st.none() | PROBES)
def test_judging_is_total_over_facts(host: Any, demand: Any, probes: Probes | None) -> None:
    facts = replace(changed(host=host, demand=demand), probes=probes)
    candidate = judge(facts, score=1.5)
    kinds = [check.condition for check in candidate.checks]
    assert kinds == [one for one in CONDITIONS if one in kinds], "in the order of the table, each once"
    if probes is not None:
        assert kinds == list(CONDITIONS), "with probes nothing is left out"
    for check in candidate.checks:
        assert check.verdict
        texts = (check.observed_source, check.observed_target, check.required, check.fix)
        assert max(len(text.encode()) for text in texts) <= MAX_BYTES
        if check.verdict in REFUSING:
            assert check.fix, "whoever is refused is told what to do"
    assert candidate.verdict == worst(candidate.checks)
    assert passed(candidate) == (probes is not None and candidate.verdict not in REFUSING)


@given(host=HOSTS, demand=DEMANDS)
def test_what_the_cheap_filters_refuse_has_a_row_that_fails(host: Any, demand: Any) -> None:
    """Every reason is kept, without a probe too; the source's facts are those that placement goes by."""
    facts = replace(changed(host=host, demand=demand), probes=None)
    plan = place([facts.target.placement], facts.move.demand)
    if plan.chosen is None:
        assert judge(facts).verdict == MigrationCheck.VERDICT_FAIL


@given(probes=PROBES)
def test_only_a_file_that_was_read_makes_disks_shared(probes: Probes) -> None:
    """It is what VIR_MIGRATE_UNSAFE rests on."""
    candidate = judge(replace(FACTS, probes=probes))
    tried = probes.shared_file
    read = tried is not None and isinstance(tried.found, SharedFile) and tried.found.read
    assert (candidate.kind == Migration.KIND_LIVE_SHARED) == read


def test_a_move_for_which_everything_holds_passes_with_an_expected_duration() -> None:
    candidate = judge(FACTS)
    assert candidate.verdict == MigrationCheck.VERDICT_PASS
    assert (candidate.host, candidate.display_name) == ("hosts/id-of-beta", "beta")
    assert candidate.kind == Migration.KIND_LIVE_BLOCK
    assert 12 < candidate.expected_duration.ToTimedelta().total_seconds() < 13


def test_what_does_not_converge_has_no_expected_duration() -> None:
    assert not judge(changed(dirty_rate=1 << 40)).HasField("expected_duration")


def test_failures_count_more_than_unknowns_and_these_more_than_warnings() -> None:
    rows = {
        verdict: MigrationCheck(verdict=verdict)
        for verdict in (
            MigrationCheck.VERDICT_NOT_APPLICABLE,
            MigrationCheck.VERDICT_PASS,
            MigrationCheck.VERDICT_WARN,
            MigrationCheck.VERDICT_UNKNOWN,
            MigrationCheck.VERDICT_FAIL,
        )
    }
    for place_in_order, verdict in enumerate(rows):
        expected = (
            max(verdict, MigrationCheck.VERDICT_PASS) if place_in_order else MigrationCheck.VERDICT_PASS
        )
        below = list(rows.values())[: place_in_order + 1]
        assert worst(below) == expected
    assert worst([]) == MigrationCheck.VERDICT_PASS


def test_a_refusal_carries_one_violation_per_row_with_what_was_seen_needed_and_how_to_repair_it() -> None:
    full = changed(
        host={"used_memory_mib": 8000},
        target=an_assessment(pool_available_bytes=0, pool_uid="u"),
        demand={"host": HostId("id-of-beta")},
    )
    error = preflight_failed([judge(full)])
    assert error.reason is Reason.PREFLIGHT_FAILED
    assert [one.subject for one in error.violations] == [
        "hosts/id-of-beta/STORAGE",
        "hosts/id-of-beta/CAPACITY",
    ]
    for part in ("FAIL: source: pool 'local', local", "0 MiB free", "required: pool", "Free space in pool"):
        assert part in error.violations[0].description
    assert error.metadata == {"hosts/id-of-beta": "STORAGE, CAPACITY"}
    assert error.message == "nothing was touched: the target is refused by preflight (STORAGE, CAPACITY)"


def test_an_owner_is_told_the_conditions_and_nothing_of_hosts() -> None:
    full = judge(changed(host={"used_memory_mib": 8000}, side={"agent_version": "0.9.0"}))
    told = without_hosts(preflight_failed([full, full]))
    assert told.reason is Reason.PREFLIGHT_FAILED
    assert [one.subject for one in told.violations] == ["TARGET_AVAILABLE", "CAPACITY"]
    everything = f"{told.message} {dict(told.metadata)} {told.violations}"
    assert "each of 2 hosts" in told.message
    assert not any(word in everything for word in ("beta", "id-of-beta", "8192", "0.9.0"))
    other = RemudaError(Reason.DISK_FULL, "as it is")
    assert without_hosts(other) is other


def test_a_candidate_that_was_not_probed_is_never_taken() -> None:
    assert not passed(MigrationCandidate(verdict=MigrationCheck.VERDICT_PASS))


def test_facts_of_the_fixture_hold_for_placement_too() -> None:
    facts: Facts = FACTS
    assert place([facts.target.placement], DEMAND).chosen is not None
    assert DEMAND.disk_bytes == GIB

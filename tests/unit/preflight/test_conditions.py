"""Each condition: every verdict it can give, and words that an operator can act on."""

from typing import Any, NamedTuple

import pytest
from remuda.agent.v1.probe_pb2 import AssessGuestResponse, OpenLibvirtResponse, ResolveHostResponse
from remuda.compute.v1.moving_pb2 import MigrationCheck
from remuda_core.ids import HostId
from remuda_scheduler.placement.model import Pool
from remuda_scheduler.preflight.conditions import CONDITIONS
from remuda_scheduler.preflight.facts import NoAnswer, Reach, SharedFile

from tests.unit.preflight.conftest import GIB, MIB, Build, a_disk, a_guest, an_assessment

Check = MigrationCheck
PASS, WARN, FAIL = Check.VERDICT_PASS, Check.VERDICT_WARN, Check.VERDICT_FAIL
UNKNOWN, NOT_APPLICABLE = Check.VERDICT_UNKNOWN, Check.VERDICT_NOT_APPLICABLE
SILENT = NoAnswer(words="HOST_UNREACHABLE: the agent of host beta does not answer: UNAVAILABLE")
INCOMPATIBLE, SUPERSET = AssessGuestResponse.CPU_INCOMPATIBLE, AssessGuestResponse.CPU_SUPERSET


def shared(uid: str = "nfs-1") -> dict[str, Any]:
    pool = Pool(name="local", uid=uid, shared=True, capacity_bytes=0, available_bytes=0)
    return {"pools": {"local": pool}}


SHARED: dict[str, Any] = {
    "host": shared(),
    "source_host": shared(),
    "demand": {"disk_bytes": 0, "pool_uid": "nfs-1"},
    "target": an_assessment(pool_uid="nfs-1", pool_available_bytes=0),
}
ISO = a_disk("sda", device="cdrom", bus="sata", readonly=True, config_drive=True)


class Case(NamedTuple):
    """`says` stands somewhere in the row."""

    condition: str
    verdict: MigrationCheck.Verdict.ValueType
    changes: dict[str, Any]
    says: str


CASES = [
    Case("TARGET_AVAILABLE", PASS, {}, "agent 0.1.0"),
    Case("TARGET_AVAILABLE", FAIL, {"host": {"up": False, "state": "unreachable"}}, "is unreachable"),
    Case("TARGET_AVAILABLE", FAIL, {"host": {"up": False, "state": "fenced"}}, "is fenced"),
    Case("TARGET_AVAILABLE", FAIL, {"host": {"cordoned": True}}, "is cordoned"),
    Case(
        "TARGET_AVAILABLE",
        PASS,
        {"host": {"cordoned": True}, "demand": {"host": HostId("id-of-beta")}},
        "up",
    ),
    Case("TARGET_AVAILABLE", FAIL, {"host": {"id": HostId("id-of-alpha")}}, "it is the source"),
    Case(
        "TARGET_AVAILABLE",
        FAIL,
        {"demand": {"excluded": {HostId("id-of-beta"): "it still owes clean-up"}}},
        "it still owes clean-up",
    ),
    Case("TARGET_AVAILABLE", FAIL, {"side": {"agent_version": "0.2.0"}}, "Upgrade the older agent"),
    Case("TARGET_AVAILABLE", FAIL, {"side": {"agent_version": ""}}, "agent unknown"),
    Case("CPU_COMPATIBLE", PASS, {}, "identical"),
    Case("CPU_COMPATIBLE", PASS, {"target": an_assessment(cpu=SUPERSET)}, "superset"),
    Case(
        "CPU_COMPATIBLE",
        FAIL,
        {"target": an_assessment(cpu=INCOMPATIBLE, cpu_detail="missing features: avx2")},
        "missing features: avx2",
    ),
    Case("CPU_COMPATIBLE", WARN, {"source": an_assessment(cpu=INCOMPATIBLE)}, "one-way move"),
    Case("CPU_COMPATIBLE", WARN, {"source": SILENT}, "could come back is not known"),
    Case("CPU_COMPATIBLE", UNKNOWN, {"target": an_assessment(cpu=0, cpu_detail="busy")}, "busy"),
    Case("CPU_COMPATIBLE", UNKNOWN, {"target": SILENT}, SILENT.words),
    Case("CPU_COMPATIBLE", UNKNOWN, {"guest": SILENT}, SILENT.words),
    Case("CPU_COMPATIBLE", FAIL, {"target": an_assessment(domain_type="kvm")}, "guests run under kvm"),
    Case("CPU_COMPATIBLE", FAIL, {"host": {"architecture": "aarch64"}}, "architecture aarch64"),
    Case("CPU_COMPATIBLE", FAIL, {"host": {"domain_type": "kvm"}, "unprobed": True}, "domain type kvm"),
    Case(
        "CPU_COMPATIBLE",
        FAIL,
        {"target": an_assessment(cpu=INCOMPATIBLE, overridden=["cpu"])},
        "overridden for a lab: cpu",
    ),
    Case("LIBVIRT_VERSION", PASS, {}, "libvirt 9.0.0, QEMU 7.2.22, pc-q35-7.2"),
    Case("LIBVIRT_VERSION", FAIL, {"target": an_assessment(libvirt_version=9_001_000)}, "allow_version_skew"),
    Case(
        "LIBVIRT_VERSION",
        WARN,
        {"target": an_assessment(libvirt_version=9_001_000), "move": {"allow_version_skew": True}},
        "libvirt 9.1.0",
    ),
    Case(
        "LIBVIRT_VERSION",
        FAIL,
        {"target": an_assessment(libvirt_version=8_000_000), "move": {"allow_version_skew": True}},
        "Upgrade libvirt on the target",
    ),
    Case(
        "LIBVIRT_VERSION",
        FAIL,
        {
            "target": an_assessment(libvirt_version=9_001_000, qemu_version=7_001_000),
            "move": {"allow_version_skew": True},
        },
        "Upgrade QEMU on the target",
    ),
    Case("LIBVIRT_VERSION", FAIL, {"target": an_assessment(machine_type_offered=False)}, "no pc-q35-7.2"),
    Case(
        "LIBVIRT_VERSION", FAIL, {"host": {"machine_types": frozenset()}, "unprobed": True}, "no pc-q35-7.2"
    ),
    Case("LIBVIRT_VERSION", UNKNOWN, {"target": an_assessment(qemu_version=0)}, "QEMU unknown"),
    Case("LIBVIRT_VERSION", UNKNOWN, {"target": SILENT}, SILENT.words),
    Case("LIBVIRT_VERSION", UNKNOWN, {"guest": SILENT}, SILENT.words),
    Case("HOSTNAME_RESOLUTION", PASS, {}, "beta is 192.0.2.2"),
    Case(
        "HOSTNAME_RESOLUTION",
        FAIL,
        {"target_by_source": ResolveHostResponse(error="Name or service not known")},
        "On alpha: let its resolver, for example /etc/hosts, know beta as 192.0.2.2.",
    ),
    Case(
        "HOSTNAME_RESOLUTION",
        FAIL,
        {"source_by_target": ResolveHostResponse(addresses=["127.0.1.1"])},
        "On beta: let its resolver, for example /etc/hosts, know alpha as 192.0.2.1.",
    ),
    Case(
        "HOSTNAME_RESOLUTION",
        FAIL,
        {"target_by_source": ResolveHostResponse(addresses=["192.0.2.9"])},
        "beta is 192.0.2.9",
    ),
    Case(
        "HOSTNAME_RESOLUTION",
        FAIL,
        {"target_by_source": ResolveHostResponse(addresses=["::1"]), "side": {"migration_address": ""}},
        "not of loopback",
    ),
    Case(
        "HOSTNAME_RESOLUTION",
        PASS,
        {
            "target_by_source": ResolveHostResponse(addresses=["192.0.2.9"]),
            "side": {"migration_address": "b.example"},
        },
        "beta is 192.0.2.9",
    ),
    Case("HOSTNAME_RESOLUTION", UNKNOWN, {"source_by_target": SILENT}, SILENT.words),
    Case(
        "HOSTNAME_RESOLUTION",
        FAIL,
        {"source_by_target": SILENT, "target_by_source": ResolveHostResponse()},
        SILENT.words,
    ),
    Case("MIGRATION_TRANSPORT", PASS, {}, "connected to 192.0.2.2 port 49152"),
    Case(
        "MIGRATION_TRANSPORT",
        FAIL,
        {"reach": Reach(address="192.0.2.2", port=49152, heard=False, error="refused")},
        "192.0.2.2 port 49152: refused",
    ),
    Case(
        "MIGRATION_TRANSPORT",
        FAIL,
        {"reach": Reach(address="192.0.2.2", port=49152, heard=False)},
        "did not arrive",
    ),
    Case("MIGRATION_TRANSPORT", FAIL, {"host": {"migration_transport": "tcp"}}, "the source has tls"),
    Case(
        "MIGRATION_TRANSPORT",
        FAIL,
        {"host": {"migration_transport": "tcp"}, "unprobed": True},
        "[migration] transport",
    ),
    Case("MIGRATION_TRANSPORT", UNKNOWN, {"reach": SILENT}, SILENT.words),
    Case("LIBVIRT_LISTENING", PASS, {}, "opened qemu+tls://beta/system"),
    Case(
        "LIBVIRT_LISTENING",
        FAIL,
        {"libvirt": OpenLibvirtResponse(error="Connection refused")},
        "Connection refused",
    ),
    Case("LIBVIRT_LISTENING", FAIL, {"libvirt": OpenLibvirtResponse(hostname="alpha")}, "back to the source"),
    Case("LIBVIRT_LISTENING", FAIL, {"libvirt": OpenLibvirtResponse()}, "did not say its name"),
    Case(
        "LIBVIRT_LISTENING",
        UNKNOWN,
        {
            "libvirt": OpenLibvirtResponse(error="unable to resolve"),
            "target_by_source": ResolveHostResponse(),
        },
        "See HOSTNAME_RESOLUTION first",
    ),
    Case("LIBVIRT_LISTENING", UNKNOWN, {"libvirt": SILENT}, SILENT.words),
    Case("STORAGE", PASS, {}, "51200 MiB free"),
    Case("STORAGE", FAIL, {"target": an_assessment(pool_available_bytes=GIB, pool_uid="u")}, "1025 MiB are"),
    Case(
        "STORAGE",
        FAIL,
        {"host": {"reserved_disk_bytes": {"uid-of-beta": 50 * GIB}}},
        "0 MiB free",
    ),
    Case("STORAGE", FAIL, {"target": an_assessment(pool_uid="")}, "there is no pool 'local'"),
    Case(
        "STORAGE",
        FAIL,
        {"target": an_assessment(pool_uid="u", base_image_cached=False, base_image_problem="refused")},
        "base image not obtainable: refused",
    ),
    Case("STORAGE", FAIL, {"guest": a_guest(disks=[a_disk("vda", source="/srv/x")])}, "/srv/x"),
    Case("STORAGE", UNKNOWN, {"target": SILENT}, SILENT.words),
    Case("STORAGE", UNKNOWN, {"guest": SILENT}, SILENT.words),
    Case("STORAGE", PASS, {**SHARED, "shared_file": SharedFile(pool_uid="nfs-1", read=True)}, "was read"),
    Case("STORAGE", FAIL, {**SHARED, "shared_file": SharedFile(pool_uid="nfs-1", read=False)}, "not seen"),
    Case("STORAGE", UNKNOWN, {**SHARED, "shared_file": SILENT}, SILENT.words),
    Case(
        "STORAGE",
        FAIL,
        {**SHARED, "shared_file": SharedFile(full="pool nfs: no space left")},
        "no space left",
    ),
    Case("STORAGE", FAIL, {**SHARED, "host": shared("nfs-2")}, "is another storage"),
    Case("STORAGE", FAIL, {"host": {"pools": {}}, "unprobed": True}, "is not there"),
    Case(
        "CONFIG_DRIVE",
        PASS,
        {"guest": a_guest(disks=[a_disk("vdb", config_drive=True, format="raw")])},
        "it is copied",
    ),
    Case("CONFIG_DRIVE", NOT_APPLICABLE, {"guest": a_guest(disks=[])}, "no config drive"),
    Case("CONFIG_DRIVE", FAIL, {"guest": a_guest(disks=[ISO])}, "sda: cdrom on sata, qcow2, readonly"),
    Case(
        "CONFIG_DRIVE",
        FAIL,
        {"guest": a_guest(disks=[a_disk("vdb", config_drive=True, readonly=True)])},
        "start it again",
    ),
    Case(
        "CONFIG_DRIVE",
        FAIL,
        {"guest": a_guest(disks=[a_disk("vdb", config_drive=True, source="/tmp/seed.iso")])},
        "in the instance's own directory",
    ),
    Case(
        "CONFIG_DRIVE",
        PASS,
        {
            **SHARED,
            "guest": a_guest(disks=[ISO]),
            "shared_file": SharedFile(pool_uid="nfs-1", read=True),
        },
        "it stays where it is",
    ),
    Case("CONFIG_DRIVE", UNKNOWN, {"guest": SILENT}, SILENT.words),
    Case("NETWORK", PASS, {}, "physnet on br0"),
    Case("NETWORK", FAIL, {"target": an_assessment(bridges={"other": "br1"})}, "no bridge for physnet"),
    Case("NETWORK", FAIL, {"host": {"physical_networks": frozenset()}, "unprobed": True}, "[bridges]"),
    Case("NETWORK", NOT_APPLICABLE, {"demand": {"physical_networks": frozenset()}}, "no port"),
    Case("NETWORK", UNKNOWN, {"target": SILENT}, SILENT.words),
    Case("CAPACITY", PASS, {}, "1 of 8 vCPUs and 1024 of 8192 MiB taken after the move"),
    Case("CAPACITY", FAIL, {"host": {"used_memory_mib": 8000}}, "192 of 8192 MiB free, 1024 MiB needed"),
    Case("CAPACITY", FAIL, {"host": {"used_vcpus": 8}}, "0 of 8 vCPUs free"),
    Case(
        "CAPACITY",
        FAIL,
        {"host": {"reserved_disk_bytes": {"uid-of-beta": 100 * GIB}}},
        "102400 MiB of them promised",
    ),
    Case("GROUP_POLICY", NOT_APPLICABLE, {}, "no server group"),
    Case("DEVICES", PASS, {}, "none"),
    Case("DEVICES", FAIL, {"guest": a_guest(host_devices=["hostdev pci 0000:00:02.0"])}, "0000:00:02.0"),
    Case("DEVICES", UNKNOWN, {"guest": SILENT}, SILENT.words),
    # 1 GiB at 110 - 10 MiB/s, and 200 MiB of disks at 110 MiB/s.
    Case("CONVERGENCE", PASS, {}, "converges in about 13 s"),
    Case("CONVERGENCE", PASS, {"move": {"bandwidth_mib_s": 20}}, "converges in about 113 s"),
    Case("CONVERGENCE", WARN, {"dirty_rate": 200 * MIB}, "more than 201 MiB/s of bandwidth"),
    Case("CONVERGENCE", WARN, {"dirty_rate": None}, "never measured"),
    Case("CONVERGENCE", WARN, {"dirty_rate": SILENT}, SILENT.words),
    Case("CONVERGENCE", UNKNOWN, {"guest": SILENT}, SILENT.words),
]


def judged(condition: str, build: Build, changes: dict[str, Any]) -> MigrationCheck:
    check = CONDITIONS[Check.Condition.Value(f"CONDITION_{condition}")](build(**changes))
    assert check is not None
    return check


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{one.condition}-{Check.Verdict.Name(one.verdict)}-{one.says[:30]}" for one in CASES]
)
def test_each_verdict_has_its_ground_and_its_words(build: Build, case: Case) -> None:
    check = judged(case.condition, build, case.changes)
    assert Check.Verdict.Name(check.verdict) == Check.Verdict.Name(case.verdict), check
    assert case.says in " | ".join(
        (check.observed_source, check.observed_target, check.required, check.fix)
    ), check
    if case.verdict in (FAIL, UNKNOWN):
        assert check.fix.endswith((".", ":")), "an operator is told what to do, in a sentence"
        assert check.observed_source or check.observed_target


def test_every_condition_of_the_protocol_has_a_function_in_its_order() -> None:
    declared = [number for number in Check.Condition.values() if number]
    assert list(CONDITIONS) == declared


def test_a_row_says_how_long_its_slowest_probe_took_and_when_the_oldest_was(build: Build) -> None:
    check = judged("CPU_COMPATIBLE", build, {})
    assert check.duration_ms == 7
    assert check.check_time.seconds == 1735689600


def test_a_pool_that_was_only_copied_with_its_uid_is_copied_into(build: Build) -> None:
    """Neither host calls it shared, and the file was not seen: two storages with one uid file."""
    pool = {
        "pools": {"local": Pool(name="local", uid="clone", shared=False, capacity_bytes=0, available_bytes=0)}
    }
    facts = {
        "host": pool,
        "source_host": pool,
        "target": an_assessment(pool_uid="clone"),
        "shared_file": SharedFile(pool_uid="clone", read=False),
    }
    assert judged("STORAGE", build, facts).verdict == PASS
    assert not build(**facts).same_storage


def test_the_same_storage_is_found_even_where_nobody_calls_it_shared(build: Build) -> None:
    """A copy would be written over the disks it is read from."""
    pool = {
        "pools": {"local": Pool(name="local", uid="nfs", shared=False, capacity_bytes=0, available_bytes=0)}
    }
    facts = build(
        host=pool,
        source_host=pool,
        target=an_assessment(pool_uid="nfs"),
        shared_file=SharedFile(pool_uid="nfs", read=True),
    )
    assert facts.claims_same_storage
    assert facts.same_storage

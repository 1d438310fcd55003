"""libvirt's numbers and words: states, events, migration flags and statistics, capabilities."""

from dataclasses import replace
from typing import Any

import libvirt
import pytest
from remuda_agent.hypervisor import DomainJob, EventKind, MigrationRequest, PowerState
from remuda_agent.hypervisor.libvirt import migration
from remuda_agent.hypervisor.libvirt.host_facts import parse_capabilities
from remuda_agent.hypervisor.libvirt.states import translate_event, translate_state
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, InstanceId, OperationId

REQUEST = MigrationRequest(
    instance_id=InstanceId("i"),
    operation_id=OperationId("o"),
    target_epoch=Epoch(2),
    target_hostname="host2",
)
PARTS = {"live_xml": "<live/>", "persistent_xml": "<persistent/>", "disks": ("vda", "vdb")}
CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch></cpu></host>
<guest><os_type>hvm</os_type><arch name='i686'><machine>pc-q35-7.2</machine></arch></guest>
<guest><os_type>hvm</os_type><arch name='x86_64'><emulator>/usr/bin/qemu-system-x86_64</emulator>
  <machine canonical='pc-i440fx-7.2'>pc</machine>
  <machine canonical='pc-q35-7.10'>q35</machine>
  <machine>pc-q35-7.2</machine><machine>pc-q35-6.1</machine><machine>isapc</machine>
</arch></guest></capabilities>"""


def reasons(prefix: str) -> list[int]:
    return [
        value
        for name, value in vars(libvirt).items()
        if name.startswith(prefix) and isinstance(value, int) and not name.endswith("_LAST")
    ]


@pytest.mark.parametrize(
    ("state", "prefix", "power_states"),
    [
        (libvirt.VIR_DOMAIN_RUNNING, "VIR_DOMAIN_RUNNING_", {PowerState.RUNNING}),
        (libvirt.VIR_DOMAIN_BLOCKED, "VIR_DOMAIN_BLOCKED_", {PowerState.RUNNING}),
        (libvirt.VIR_DOMAIN_PAUSED, "VIR_DOMAIN_PAUSED_", {PowerState.PAUSED}),
        (libvirt.VIR_DOMAIN_PMSUSPENDED, "VIR_DOMAIN_PMSUSPENDED_", {PowerState.PAUSED}),
        (libvirt.VIR_DOMAIN_SHUTDOWN, "VIR_DOMAIN_SHUTDOWN_", {PowerState.RUNNING}),
        (libvirt.VIR_DOMAIN_SHUTOFF, "VIR_DOMAIN_SHUTOFF_", {PowerState.SHUTOFF, PowerState.CRASHED}),
        (libvirt.VIR_DOMAIN_CRASHED, "VIR_DOMAIN_CRASHED_", {PowerState.CRASHED}),
    ],
)
def test_every_state_and_reason_of_libvirt_has_a_word(
    state: int, prefix: str, power_states: set[PowerState]
) -> None:
    known = [translate_state(state, reason) for reason in reasons(prefix)]
    assert {power_state for power_state, _ in known} == power_states
    assert all(word and word == word.lower() for _, word in known)


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_MIGRATED, (PowerState.RUNNING, "migrated")),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION, (PowerState.PAUSED, "migration")),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY, (PowerState.PAUSED, "postcopy")),
        (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, (PowerState.CRASHED, "crashed")),
        (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED, (PowerState.SHUTOFF, "migrated")),
        (libvirt.VIR_DOMAIN_SHUTOFF, 4711, (PowerState.SHUTOFF, "unknown")),
        (libvirt.VIR_DOMAIN_NOSTATE, 0, (PowerState.RUNNING, "nostate")),
        (4711, 0, (PowerState.RUNNING, "nostate")),
    ],
)
def test_a_state_is_translated(state: int, reason: int, expected: tuple[PowerState, str]) -> None:
    assert translate_state(state, reason) == expected


def test_an_unknown_event_asks_for_a_look_at_everything() -> None:
    assert translate_event(4711, 0) == (EventKind.RELIST, "")
    assert translate_event(libvirt.VIR_DOMAIN_EVENT_SUSPENDED, 4711) == (EventKind.SUSPENDED, "")
    suspended = translate_event(
        libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED
    )
    assert suspended == (EventKind.SUSPENDED, "migrated")


def test_a_block_migration_names_its_disks_and_a_shared_one_is_declared_safe_by_us() -> None:
    block, shared = REQUEST, replace(REQUEST, shared_disks=True)
    assert migration.flags(block) & libvirt.VIR_MIGRATE_NON_SHARED_INC
    assert not migration.flags(block) & libvirt.VIR_MIGRATE_UNSAFE
    assert migration.parameters(block, **PARTS)[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] == ["vda", "vdb"]  # type: ignore[arg-type]
    assert migration.flags(shared) & libvirt.VIR_MIGRATE_UNSAFE
    assert not migration.flags(shared) & libvirt.VIR_MIGRATE_NON_SHARED_INC
    assert libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS not in migration.parameters(shared, **PARTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("transport", ["tls", "tcp"])
def test_every_migration_outlives_us_and_keeps_the_sources_definition(shared: bool, transport: str) -> None:
    chosen = migration.flags(replace(REQUEST, shared_disks=shared, transport=transport))
    for wanted in ("LIVE", "PEER2PEER", "PERSIST_DEST", "ABORT_ON_ERROR"):
        assert chosen & getattr(libvirt, f"VIR_MIGRATE_{wanted}")
    for unwanted in ("UNDEFINE_SOURCE", "PARALLEL", "POSTCOPY", "COMPRESSED", "TUNNELLED"):
        assert not chosen & getattr(libvirt, f"VIR_MIGRATE_{unwanted}")
    assert bool(chosen & libvirt.VIR_MIGRATE_TLS) is (transport == "tls")


def test_the_certificate_is_checked_against_the_name_although_bytes_go_to_an_address() -> None:
    asked = replace(REQUEST, target_address="fd00::2", bandwidth_mib_s=40, auto_converge=True)
    chosen: dict[str, Any] = migration.parameters(asked, **PARTS)  # type: ignore[arg-type]
    assert migration.destination(asked) == "qemu+tls://host2/system"
    assert chosen[libvirt.VIR_MIGRATE_PARAM_URI] == "tcp://[fd00::2]"
    assert chosen[libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION] == "host2"
    assert chosen[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] == 40
    assert chosen[libvirt.VIR_MIGRATE_PARAM_DEST_XML] == "<live/>"
    assert chosen[libvirt.VIR_MIGRATE_PARAM_PERSIST_XML] == "<persistent/>"
    assert migration.flags(asked) & libvirt.VIR_MIGRATE_AUTO_CONVERGE


@pytest.mark.parametrize("allowed", [True, False])
def test_post_copy_is_a_flag_of_the_start_and_keeps_to_the_same_cap(allowed: bool) -> None:
    asked = replace(REQUEST, bandwidth_mib_s=40, allow_post_copy=allowed)
    assert bool(migration.flags(asked) & libvirt.VIR_MIGRATE_POSTCOPY) is allowed
    chosen = migration.parameters(asked, **PARTS)  # type: ignore[arg-type]
    assert chosen.get(libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY) == (40 if allowed else None)
    free = migration.parameters(replace(asked, bandwidth_mib_s=0), **PARTS)  # type: ignore[arg-type]
    assert libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY not in free


@pytest.mark.parametrize(
    ("reason", "switching_over", "post_copy"),
    [
        ("", False, False),
        ("user", False, False),
        ("migration", True, False),
        ("postcopy", False, True),
        ("postcopy_failed", False, True),
    ],
)
def test_what_a_paused_source_waits_for_is_told_with_its_statistics(
    reason: str, switching_over: bool, post_copy: bool
) -> None:
    stats = migration.job_stats({"memory_total": 5}, reason)
    assert (stats.switching_over, stats.post_copy) == (switching_over, post_copy)


def test_plain_tcp_has_no_certificate_to_check() -> None:
    asked = replace(REQUEST, target_address="10.0.0.2", transport="tcp")
    chosen = migration.parameters(asked, **PARTS)  # type: ignore[arg-type]
    assert chosen[libvirt.VIR_MIGRATE_PARAM_URI] == "tcp://10.0.0.2"
    assert libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION not in chosen


def test_dirty_pages_become_bytes() -> None:
    stats = migration.job_stats({"memory_dirty_rate": 10, "memory_page_size": 4096, "memory_total": 5})
    assert stats.dirty_bytes_per_second == 40960
    assert stats.memory_total_bytes == 5
    assert not stats.copying_disks
    assert migration.job_stats({"disk_remaining": 1}).copying_disks


@pytest.mark.parametrize(
    ("stats", "job"),
    [
        ({}, DomainJob.NONE),
        ({"type": libvirt.VIR_DOMAIN_JOB_NONE}, DomainJob.NONE),
        (
            {"type": libvirt.VIR_DOMAIN_JOB_UNBOUNDED, "operation": libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP},
            DomainJob.OTHER,
        ),
        (
            {
                "type": libvirt.VIR_DOMAIN_JOB_UNBOUNDED,
                "operation": libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT,
            },
            DomainJob.MIGRATION_OUT,
        ),
    ],
)
def test_a_job_is_recognised(stats: dict[str, int], job: DomainJob) -> None:
    assert migration.running_job(stats) is job


def test_an_unknown_downtime_is_not_zero() -> None:
    done = {
        "type": libvirt.VIR_DOMAIN_JOB_COMPLETED,
        "operation": libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT,
    }
    without = migration.completed(done)
    assert without is not None
    assert without.downtime_ms is None
    measured = migration.completed({**done, "downtime": 0, "time_elapsed": 812})
    assert measured is not None
    assert (measured.downtime_ms, measured.job_duration_ms) == (0, 812)


def test_only_a_migration_that_ended_well_is_completed() -> None:
    operation = {"operation": libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT}
    assert migration.completed({}) is None
    assert migration.completed({"type": libvirt.VIR_DOMAIN_JOB_CANCELLED, **operation}) is None
    backup = {"operation": libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP}
    assert migration.completed({"type": libvirt.VIR_DOMAIN_JOB_COMPLETED, **backup}) is None


def test_machine_types_are_the_canonical_q35_ones_newest_last() -> None:
    facts = parse_capabilities(CAPABILITIES)
    assert facts.machine_types == ("pc-q35-6.1", "pc-q35-7.2", "pc-q35-7.10")
    assert facts.default_machine_type == "pc-q35-7.10"
    assert facts.emulator == "/usr/bin/qemu-system-x86_64"


@pytest.mark.parametrize("missing", ["x86_64'", "q35"])
def test_a_host_that_cannot_run_our_guests_says_so(missing: str) -> None:
    with pytest.raises(RemudaError) as refused:
        parse_capabilities(CAPABILITIES.replace(missing, "other'" if "'" in missing else "other"))
    assert refused.value.reason is Reason.HYPERVISOR_ERROR

"""LiveMigrateInstance begins with a preflight: what it refuses was never touched."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from google.rpc import error_details_pb2
from remuda.agent.v1.common_pb2 import StepKey
from remuda.agent.v1.probe_pb2 import AssessGuestResponse, GuestDisk
from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest, MigrationCheck
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda.store.v1.operation_pb2 import OperationRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId, OperationId
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import FakeHost
from remuda_core.testing.probes import FakeSight
from remuda_scheduler.ports import Decision, PlacementRequest
from remuda_scheduler.testing.cluster import Cluster
from remuda_scheduler.testing.ports import FirstFit
from remuda_scheduler.testing.scenarios import SCENARIOS

DONE, FAILED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_FAILED
LOCAL = next(scenario for scenario in SCENARIOS if scenario.name == "live migrate, local disks")
Break = Callable[[FakeSight, FakeSight], object]


async def migrate(cluster: Cluster, instance: InstanceId, **fields: Any) -> OperationId:
    return await cluster.admit("LiveMigrateInstance", instance, LiveMigrateInstanceRequest(**fields))


def resting(status: InstanceStatus) -> InstanceStatus:
    """Without what every operation leaves: its event and the time of it."""
    found = InstanceStatus()
    found.CopyFrom(status)
    found.ClearField("last_event")
    found.ClearField("update_time")
    return found


async def refused(cluster: Cluster, instance: InstanceId, operation: OperationId) -> OperationRecord:
    """It failed, and the instance is exactly as it was."""
    before = resting(await cluster.status(instance))
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert resting(await cluster.status(instance)) == before
    assert cluster.agents.log == [], "no order was given"
    assert cluster.probes.files == {}
    assert cluster.probes.listeners == {}
    await LOCAL.undone(cluster, instance)
    return record


def a_cdrom(source: FakeSight) -> None:
    drive = source.disks[1]
    drive.device, drive.bus, drive.readonly = "cdrom", "sata", True


BROKEN: dict[str, Break] = {
    "CPU_COMPATIBLE": lambda _, b: setattr(b, "cpu", AssessGuestResponse.CPU_INCOMPATIBLE),
    "LIBVIRT_VERSION": lambda _, b: setattr(b, "libvirt_version", 8_000_000),
    "HOSTNAME_RESOLUTION": lambda _, b: b.hosts_file.update(alpha=["127.0.1.1"]),
    "MIGRATION_TRANSPORT": lambda _, b: setattr(b, "ports_blocked", True),
    "LIBVIRT_LISTENING": lambda _, b: setattr(b, "libvirt_closed", True),
    "STORAGE": lambda _, b: setattr(b, "available_bytes", 0),
    "CONFIG_DRIVE": lambda a, _: a_cdrom(a),
    "NETWORK": lambda _, b: b.bridges.clear(),
    "DEVICES": lambda a, _: a.host_devices.append("hostdev pci 0000:00:02.0"),
}


@pytest.mark.parametrize("condition", BROKEN)
async def test_one_broken_condition_is_the_one_violation_and_nothing_was_touched(
    cluster: Cluster, condition: str
) -> None:
    instance = await cluster.running()
    BROKEN[condition](cluster.probes.sights[cluster.a], cluster.probes.sights[cluster.b])
    operation = await migrate(cluster, instance, target_host=f"hosts/{cluster.b}")
    record = await refused(cluster, instance, operation)
    error = from_status(record.error)
    assert error.reason is Reason.PREFLIGHT_FAILED
    assert [one.subject for one in error.violations] == [f"hosts/{cluster.b}/{condition}"]
    assert error.violations[0].description.startswith("beta: FAIL: ")
    details = error_details_pb2.PreconditionFailure()
    assert any(detail.Unpack(details) for detail in record.error.details)
    kept = record.metadata.preflight
    assert (kept.host, kept.verdict) == (f"hosts/{cluster.b}", MigrationCheck.VERDICT_FAIL)
    assert [step.name for step in record.metadata.steps] == ["preflight_passed"]


async def test_a_silent_target_is_unknown_and_refused_with_its_words(cluster: Cluster) -> None:
    instance = await cluster.running()
    operation = await migrate(cluster, instance, target_host=f"hosts/{cluster.b}")
    cluster.agents.hosts[cluster.b].fall_silent()
    error = from_status((await refused(cluster, instance, operation)).error)
    assert error.reason is Reason.PREFLIGHT_FAILED
    assert {one.subject.rpartition("/")[2] for one in error.violations} >= {"CPU_COMPATIBLE", "STORAGE"}
    assert all(one.description.startswith("beta: UNKNOWN: ") for one in error.violations)
    assert "HOST_UNREACHABLE: no answer from beta" in error.violations[0].description


async def test_the_rows_of_the_chosen_target_stay_with_the_operation(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    await LOCAL.succeeded(cluster, instance)
    kept = record.metadata.preflight
    assert kept.host == f"hosts/{cluster.b}"
    assert [check.condition for check in kept.checks] == [
        one for one in MigrationCheck.Condition.values() if one
    ]
    # Nobody has measured how fast it dirties its memory: LiveMigrateInstance takes the last known rate.
    assert kept.verdict == MigrationCheck.VERDICT_WARN
    assert "measure_dirty_rate" not in [what for _, what in cluster.probes.log]


async def test_the_last_known_dirty_rate_counts_in_a_move(cluster: Cluster) -> None:
    _, operation = await LOCAL.admit(cluster)
    cluster.probes.sights[cluster.a].dirty_bytes_per_second = 1 << 20
    await cluster.lead()
    kept = (await cluster.done(operation, DONE)).metadata.preflight
    assert "dirties 1.0 MiB/s" in kept.checks[-1].observed_source
    assert kept.HasField("expected_duration")


async def test_without_a_named_target_the_next_best_that_passes_is_taken(cluster: Cluster) -> None:
    instance = await cluster.running()
    cluster.probes.sights[cluster.b].libvirt_closed = True
    operation = await migrate(cluster, instance)
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    assert (await cluster.status(instance)).host_id == cluster.c
    assert record.metadata.placement.chosen_host == f"hosts/{cluster.c}"
    (why,) = [one for one in record.metadata.placement.hosts if one.host == f"hosts/{cluster.b}"]
    assert (why.eligible, why.filter) == (False, "preflight")
    assert "Connection refused" in why.reason
    assert record.metadata.placement.rejections["preflight"] == 1


async def test_when_no_target_passes_every_reason_of_each_is_said(cluster: Cluster) -> None:
    instance = await cluster.running()
    cluster.probes.sights[cluster.b].libvirt_closed = True
    cluster.probes.sights[cluster.c].bridges.clear()
    cluster.probes.sights[cluster.c].available_bytes = 0
    operation = await migrate(cluster, instance)
    error = from_status((await refused(cluster, instance, operation)).error)
    assert error.reason is Reason.PREFLIGHT_FAILED
    assert {one.subject for one in error.violations} == {
        f"hosts/{cluster.b}/LIBVIRT_LISTENING",
        f"hosts/{cluster.c}/STORAGE",
        f"hosts/{cluster.c}/NETWORK",
    }


async def test_a_target_that_failed_is_not_tried_again_and_its_reason_is_kept(cluster: Cluster) -> None:
    instance = await cluster.running()
    operation = await migrate(cluster, instance)

    async def refuse(host: FakeHost, key: StepKey) -> None:
        if host.id == cluster.b and key.direction == StepKey.DIRECTION_DO:
            raise RemudaError(Reason.DISK_FULL, "no space left on the device")

    cluster.agents.before = refuse
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    assert (await cluster.status(instance)).host_id == cluster.c
    assert [step.name for step in record.metadata.steps].count("preflight_passed") == 2
    (why,) = [one for one in record.metadata.placement.hosts if one.host == f"hosts/{cluster.b}"]
    assert "no space left on the device" in why.reason


async def test_a_source_that_falls_silent_after_preflight_does_not_begin_for_ever(cluster: Cluster) -> None:
    instance = await cluster.running()
    operation = await migrate(cluster, instance)
    open_libvirt = cluster.probes.open_libvirt

    async def then_silent(*arguments: Any) -> Any:
        found = await open_libvirt(*arguments)
        cluster.agents.hosts[cluster.a].fall_silent()
        return found

    setattr(cluster.probes, "open_libvirt", then_silent)  # noqa: B010 - mypy refuses to assign to a method
    await cluster.lead()
    record = await cluster.done(operation, FAILED)
    assert [step.name for step in record.metadata.steps].count("preflight_passed") <= 3
    cluster.agents.hosts[cluster.a].come_back()
    await LOCAL.undone(cluster, instance)


async def test_disks_are_shared_only_when_a_file_was_read_on_the_other_side(cluster: Cluster) -> None:
    """Both hosts report one uid, and one of them has mounted something else."""
    instance = await cluster.running(pool="shared")
    cluster.probes.sights[cluster.b].storage["shared"] = "a copy of it"
    operation = await migrate(cluster, instance, target_host=f"hosts/{cluster.b}")
    record = await refused(cluster, instance, operation)
    error = from_status(record.error)
    assert [one.subject.rpartition("/")[2] for one in error.violations] == ["STORAGE"]
    assert "was not seen at the source" in error.violations[0].description


async def test_a_probe_that_saw_the_same_storage_decides_how_the_source_is_told_to_copy(
    cluster: Cluster,
) -> None:
    instance = await cluster.running(pool="shared")
    operation = await migrate(cluster, instance, target_host=f"hosts/{cluster.b}")
    await cluster.lead()
    record = await cluster.done(operation, DONE)
    assert record.metadata.preflight.kind == Migration.KIND_LIVE_SHARED
    assert [start.shared_disks for start in cluster.agents.starts] == [True]


async def test_a_target_that_was_filled_up_after_preflight_gives_way_to_the_next(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = await cluster.running()
    operation = await migrate(cluster, instance)
    choose = FirstFit.choose

    async def full(self: FirstFit, request: PlacementRequest) -> Decision:
        if request.among == frozenset({cluster.b}):
            raise RemudaError(Reason.NO_HOST_FITS, "filled up a moment ago")
        return await choose(self, request)

    monkeypatch.setattr(FirstFit, "choose", full)
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert (await cluster.status(instance)).host_id == cluster.c


async def test_the_leader_may_die_in_the_middle_of_the_probes(cluster: Cluster) -> None:
    instance, operation = await LOCAL.admit(cluster)
    inside = asyncio.Event()
    assess = cluster.probes.assess_guest

    async def hang(*arguments: Any) -> Any:
        if not inside.is_set():
            inside.set()
            await asyncio.Event().wait()
        return await assess(*arguments)

    setattr(cluster.probes, "assess_guest", hang)  # noqa: B010 - mypy refuses to assign to a method
    await cluster.lead()
    await asyncio.wait_for(inside.wait(), 60)
    await cluster.close()
    await cluster.lead()
    await cluster.done(operation, DONE)
    await LOCAL.succeeded(cluster, instance)
    assert cluster.probes.listeners == {}


async def test_a_disk_outside_of_its_directory_is_not_left_behind(cluster: Cluster) -> None:
    instance = await cluster.running()
    stray = GuestDisk(target="vdc", device="disk", bus="virtio", source="/srv/data.img")
    cluster.probes.sights[cluster.a].disks.append(stray)
    operation = await migrate(cluster, instance, target_host=f"hosts/{cluster.b}")
    error = from_status((await refused(cluster, instance, operation)).error)
    assert "/srv/data.img" in error.violations[0].description

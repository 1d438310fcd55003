"""Who may make, keep, take over and remove an instance's directory."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from remuda.agent.v1.common_pb2 import DomainSpec
from remuda_agent.disks.instance_files import PoolInstanceFiles
from remuda_agent.disks.makers import PretendingDiskMaker
from remuda_agent.disks.owner import OWNER_FILE, read_owner, write_owner
from remuda_agent.disks.pools import Pool, Pools
from remuda_agent.steps.ports import Owner
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId

ID = InstanceId("7c8d5f3e-1111-4222-8333-944455556666")
SPEC = DomainSpec(instance_id=ID, hostname="web", pool="local", disk_bytes=1 << 30, manifest_digest="ab" * 32)
OURS = Owner(
    instance_id=ID,
    host_id=HostId("host-1"),
    epoch=Epoch(3),
    operation_id=OperationId("op-1"),
    role="owner",
)
INCOMING = replace(OURS, role="incoming")
THEIRS = replace(OURS, host_id=HostId("host-2"))


@pytest.fixture
def pools(tmp_path: Path) -> Pools:
    pools = Pools([Pool(name="local", path=tmp_path)])
    pools.prepare()
    return pools


@pytest.fixture
def files(pools: Pools) -> PoolInstanceFiles:
    return PoolInstanceFiles(pools, PretendingDiskMaker())


def directory(files: PoolInstanceFiles) -> Path:
    return files.paths("local", ID).directory


async def test_a_guests_files_are_made_and_owned(files: PoolInstanceFiles, pools: Pools) -> None:
    paths = await files.create(SPEC, OURS)
    assert sorted(path.name for path in paths.directory.iterdir()) == [
        "config.img",
        "disk.qcow2",
        "owner.json",
    ]
    assert str(pools.get("local").bases / f"{'ab' * 32}.raw") in paths.disk.read_text()
    assert files.owners() == [("local", OURS)]


async def test_making_them_again_keeps_what_the_guest_has_written(files: PoolInstanceFiles) -> None:
    paths = await files.create(SPEC, OURS)
    paths.disk.write_text("written by the guest")
    await files.create(SPEC, replace(OURS, operation_id=OperationId("op-2")))
    assert paths.disk.read_text() == "written by the guest"


async def test_what_a_crash_left_half_made_is_made_anew(files: PoolInstanceFiles) -> None:
    write_owner_of(files, OURS)
    (directory(files) / "disk.qcow2.new").write_text("HALF-MADE")
    paths = await files.create(SPEC, OURS)
    assert "HALF-MADE" not in paths.disk.read_text()
    assert not (directory(files) / "disk.qcow2.new").exists()


class FailingDiskMaker(PretendingDiskMaker):
    async def config_drive(self, path: Path, *, files: Mapping[str, bytes], volume_id: int) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")


class SlowDiskMaker(FailingDiskMaker):
    """Its overlay takes until the config drive has failed, and then its time."""

    async def overlay(self, path: Path, *, base: Path, size_bytes: int) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        await super().overlay(path, base=base, size_bytes=size_bytes)


async def test_when_one_file_fails_no_program_writes_any_more(pools: Pools, files: PoolInstanceFiles) -> None:
    with pytest.raises(RemudaError) as failed:
        await PoolInstanceFiles(pools, SlowDiskMaker()).create(SPEC, OURS)
    assert failed.value.reason is Reason.DISK_FULL
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, "an undo that comes now would meet it"
    assert sorted(path.name for path in directory(files).iterdir()) == [
        "config.img.new",
        "disk.qcow2",
        "owner.json",
    ]


async def test_a_full_pool_has_its_own_reason_and_leaves_an_owned_directory(
    pools: Pools, files: PoolInstanceFiles
) -> None:
    with pytest.raises(RemudaError) as refused:
        await PoolInstanceFiles(pools, FailingDiskMaker()).create(SPEC, OURS)
    assert refused.value.reason is Reason.DISK_FULL
    assert not files.paths("local", ID).config_drive.exists()
    await files.remove("local", OURS)
    assert files.owners() == []
    assert not directory(files).exists()


async def test_too_little_free_space_is_refused_before_anything_is_made(pools: Pools) -> None:
    files = PoolInstanceFiles(pools, PretendingDiskMaker(), least_free_bytes=1 << 62)
    with pytest.raises(RemudaError) as refused:
        await files.create(SPEC, OURS)
    assert refused.value.reason is Reason.DISK_FULL
    assert not directory(files).exists()


async def test_an_order_of_an_older_epoch_is_refused(files: PoolInstanceFiles) -> None:
    await files.create(SPEC, OURS)
    for late in (
        files.create(SPEC, replace(OURS, epoch=Epoch(2))),
        files.take_over("local", replace(OURS, epoch=Epoch(2))),
    ):
        with pytest.raises(RemudaError) as refused:
            await late
        assert refused.value.reason is Reason.STALE_EPOCH
        assert refused.value.metadata["epoch"] == "3"
    assert files.owners() == [("local", OURS)]


@pytest.mark.parametrize(
    "standing", [THEIRS, replace(OURS, epoch=Epoch(2))], ids=["other host", "older epoch"]
)
async def test_an_owners_directory_is_never_made_over(files: PoolInstanceFiles, standing: Owner) -> None:
    paths = await files.create(SPEC, standing)
    paths.disk.write_text("the only copy")
    with pytest.raises(RemudaError, match="released first") as refused:
        await files.create(SPEC, replace(INCOMING, epoch=Epoch(4)))
    assert refused.value.reason is Reason.STEP_FAILED
    assert paths.disk.read_text() == "the only copy"


async def test_a_failed_migration_hither_is_cleared_by_the_next(files: PoolInstanceFiles) -> None:
    paths = await files.create(SPEC, INCOMING)
    paths.disk.write_text("half a copy")
    later = replace(INCOMING, epoch=Epoch(4))
    await files.create(SPEC, later)
    assert paths.disk.read_text() != "half a copy"
    assert files.owners() == [("local", later)]


async def test_the_incoming_copy_becomes_the_owner(files: PoolInstanceFiles) -> None:
    await files.create(SPEC, INCOMING)
    for _ in range(2):
        await files.take_over("local", OURS)
        assert files.owners() == [("local", OURS)]


async def test_a_shared_directory_changes_hands_and_the_old_host_leaves_it_alone(
    files: PoolInstanceFiles,
) -> None:
    paths = await files.create(SPEC, THEIRS)
    ours = replace(OURS, epoch=Epoch(4))
    await files.take_over("local", ours)
    await files.remove("local", THEIRS)
    assert paths.disk.exists()
    await files.remove("local", ours)
    assert not paths.directory.exists()


async def test_nothing_is_taken_over_where_nothing_is(files: PoolInstanceFiles) -> None:
    with pytest.raises(RemudaError, match=OWNER_FILE) as refused:
        await files.take_over("local", OURS)
    assert refused.value.reason is Reason.STEP_FAILED


@pytest.mark.parametrize(
    ("standing", "asking"),
    [
        (OURS, THEIRS),
        (OURS, replace(OURS, epoch=Epoch(2))),
        (OURS, INCOMING),
        (replace(OURS, epoch=Epoch(2)), INCOMING),
        (replace(INCOMING, epoch=Epoch(2)), INCOMING),
    ],
    ids=["other host", "older order", "undo after the move", "undo beside an owner", "undo of another move"],
)
async def test_what_is_not_the_askers_is_not_removed(
    files: PoolInstanceFiles, standing: Owner, asking: Owner
) -> None:
    paths = await files.create(SPEC, standing)
    await files.remove("local", asking)
    assert paths.disk.exists()
    assert files.owners() == [("local", standing)]


@pytest.mark.parametrize("standing", [OURS, INCOMING, replace(OURS, epoch=Epoch(1))])
async def test_the_owner_removes_its_directory_as_often_as_it_likes(
    files: PoolInstanceFiles, standing: Owner
) -> None:
    paths = await files.create(SPEC, standing)
    for _ in range(2):
        await files.remove("local", OURS)
        assert not paths.directory.exists()


OLDER_ELSEWHERE = replace(THEIRS, epoch=Epoch(2))


@pytest.mark.parametrize(
    "standing",
    [OURS, INCOMING, replace(OURS, epoch=Epoch(1)), OLDER_ELSEWHERE, replace(INCOMING, epoch=Epoch(2))],
)
async def test_who_owns_the_newest_copy_deletes_what_older_ones_have_left(
    files: PoolInstanceFiles, standing: Owner
) -> None:
    """On a shared pool the record still names the host that the guest was moved from."""
    paths = await files.create(SPEC, standing)
    for _ in range(2):
        await files.delete("local", OURS)
        assert not paths.directory.exists()


@pytest.mark.parametrize(
    ("standing", "why"),
    [(replace(THEIRS, epoch=Epoch(4)), Reason.STALE_EPOCH), (THEIRS, Reason.STEP_FAILED)],
    ids=["newer", "another host's"],
)
async def test_a_directory_that_stays_is_told_when_it_is_deleted(
    files: PoolInstanceFiles, standing: Owner, why: Reason
) -> None:
    paths = await files.create(SPEC, standing)
    with pytest.raises(RemudaError) as stays:
        await files.delete("local", OURS)
    assert stays.value.reason is why
    assert paths.disk.exists()


async def test_deleting_tells_of_a_disk_that_is_nobodys(files: PoolInstanceFiles) -> None:
    directory(files).mkdir()
    (directory(files) / "disk.qcow2").write_text("whose?")
    with pytest.raises(RemudaError, match="nobody") as stays:
        await files.delete("local", OURS)
    assert stays.value.reason is Reason.STEP_FAILED
    assert (directory(files) / "disk.qcow2").exists()


async def test_an_undo_leaves_the_disk_of_an_older_placement_elsewhere(
    files: PoolInstanceFiles,
) -> None:
    paths = await files.create(SPEC, OLDER_ELSEWHERE)
    await files.remove("local", OURS)
    assert paths.disk.exists()
    assert await files.owner("local", ID) == OLDER_ELSEWHERE


async def test_where_nothing_is_nobody_owns(files: PoolInstanceFiles) -> None:
    assert await files.owner("local", ID) is None


async def test_a_removal_that_was_interrupted_still_says_whose_it_is(files: PoolInstanceFiles) -> None:
    paths = await files.create(SPEC, OURS)
    paths.disk.unlink()
    paths.config_drive.unlink()
    await files.remove("local", THEIRS)
    assert files.owners() == [("local", OURS)]
    await files.remove("local", OURS)
    assert not paths.directory.exists()


async def test_a_damaged_record_is_nobodys_permission(files: PoolInstanceFiles) -> None:
    paths = await files.create(SPEC, OURS)
    (paths.directory / OWNER_FILE).write_text("{")
    for attempt in (files.create(SPEC, OURS), files.remove("local", OURS), files.take_over("local", OURS)):
        with pytest.raises(RemudaError, match="damaged") as refused:
            await attempt
        assert refused.value.reason is Reason.STEP_FAILED
    assert paths.disk.exists()


async def test_a_disk_without_a_record_is_left_alone(files: PoolInstanceFiles) -> None:
    directory(files).mkdir()
    (directory(files) / "disk.qcow2").write_text("whose?")
    with pytest.raises(RemudaError, match="no owner"):
        await files.create(SPEC, OURS)
    await files.remove("local", OURS)
    assert (directory(files) / "disk.qcow2").exists()


async def test_a_digest_that_is_no_digest_does_not_become_a_path(files: PoolInstanceFiles) -> None:
    bad = DomainSpec(instance_id=ID, pool="local", manifest_digest="../../etc/passwd")
    with pytest.raises(RemudaError) as refused:
        await files.create(bad, OURS)
    assert refused.value.reason is Reason.INVALID_ARGUMENT


async def test_many_instances_are_made_side_by_side(files: PoolInstanceFiles) -> None:
    specs = [DomainSpec(instance_id=f"i-{n}", pool="local", manifest_digest="ab" * 32) for n in range(50)]
    owners = [replace(OURS, instance_id=InstanceId(spec.instance_id)) for spec in specs]
    await asyncio.gather(*(files.create(*one) for one in zip(specs, owners, strict=True)))
    assert sorted(files.owners(), key=str) == sorted((("local", owner) for owner in owners), key=str)


def write_owner_of(files: PoolInstanceFiles, owner: Owner) -> None:
    directory(files).mkdir()
    write_owner(directory(files), owner)
    assert read_owner(directory(files)) == owner

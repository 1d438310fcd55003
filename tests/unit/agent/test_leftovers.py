"""Survey and Sweep of one host: what is seen, what is removed, and all that keeps something from it."""

import asyncio
import fcntl
import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from remuda.agent.v1 import agent_pb2 as pb
from remuda.agent.v1.common_pb2 import LeaderRef, StepKey
from remuda_agent.disks.base_turns import BaseTurns
from remuda_agent.disks.owner import write_owner
from remuda_agent.disks.pools import Pool, Pools
from remuda_agent.disks.readers import DiskLook, PretendingDiskReader
from remuda_agent.hypervisor import DomainDescription
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor
from remuda_agent.jobs import Job, JobTable
from remuda_agent.leaders import LeaderGuard
from remuda_agent.leftovers.receipts import Receipts
from remuda_agent.leftovers.surveying import Surveyor
from remuda_agent.leftovers.sweeping import Sweeper
from remuda_agent.observer import Observer
from remuda_agent.steps.ports import Owner
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId

INSTANCE, HOST = InstanceId(str(uuid.uuid4())), HostId(str(uuid.uuid4()))
DIGEST = "ab" * 32
LEADER = LeaderRef(cluster_id=7, epoch=5)


@dataclass(kw_only=True)
class Place:
    """One agent's leftovers, on the fake hypervisor."""

    root: Path
    hypervisor: FakeHypervisor
    leaders: LeaderGuard
    jobs: JobTable
    turns: BaseTurns
    surveyor: Surveyor
    sweeper: Sweeper
    receipts: Receipts
    waiting: dict[InstanceId, Epoch]
    """In quarantine."""

    @property
    def local(self) -> Path:
        return self.root / "local"

    @property
    def shared(self) -> Path:
        return self.root / "shared"

    def directory(self, pool: str = "local", *, role: str = "incoming", host: HostId = HOST) -> Path:
        made = self.root / pool / "instances" / INSTANCE
        made.mkdir()
        owner = Owner(
            instance_id=INSTANCE,
            host_id=host,
            epoch=Epoch(2),
            operation_id=OperationId("move"),
            role="owner" if role == "owner" else "incoming",
        )
        write_owner(made, owner)
        (made / "disk.qcow2").write_text(f"1024 bytes over {self.root}/{pool}/base/{DIGEST}.raw\n")
        (made / "config.img").write_text("config")
        return made

    def base(self, pool: str = "local") -> Path:
        made = self.root / pool / "base" / f"{DIGEST}.raw"
        made.write_text("base")
        made.with_suffix(".manifest").write_text("manifest")
        return made

    async def define(self, *, epoch: int = 1, start: bool = False) -> None:
        await self.hypervisor.define(
            DomainDescription(
                instance_id=INSTANCE,
                title="web",
                epoch=Epoch(epoch),
                operation_id=OperationId("launch"),
                vcpus=1,
                memory_mib=64,
                disk=Path("/disk"),
                config_drive=Path("/config"),
                console=Path("/console"),
            )
        )
        if start:
            await self.hypervisor.start(INSTANCE)

    async def survey(self, instance: InstanceId | None = None, *, digests: bool = False) -> pb.SurveyResponse:
        return await self.surveyor.survey(instance, digests=digests)

    async def sweep(self, *targets: pb.SweepTarget, leader: LeaderRef = LEADER) -> list[pb.SweepReceipt]:
        request = pb.SweepRequest(leader=leader, targets=targets, principal="user/root")
        return await self.sweeper.sweep(request)

    def kept(self) -> list[tuple[str, str]]:
        lines = self.receipts.path.read_text().splitlines() if self.receipts.path.exists() else []
        return [(line["what"].split(",")[0], line["outcome"]) for line in map(json.loads, lines)]


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    for name in ("local", "shared"):
        (tmp_path / name).mkdir()
    pools = Pools(
        [
            Pool(name="local", path=tmp_path / "local"),
            Pool(name="shared", path=tmp_path / "shared", shared=True),
        ]
    )
    pools.prepare()
    hypervisor, jobs, turns = FakeHypervisor(FakeFabric(), "a"), JobTable(), BaseTurns()
    leaders, receipts = LeaderGuard(tmp_path / "state"), Receipts(tmp_path / "state")
    waiting: dict[InstanceId, Epoch] = {}
    surveyor = Surveyor(
        observer=Observer(hypervisor, first_sequence=1, migrates=jobs.migrates, waiting=lambda: waiting),
        pools=pools,
        reader=PretendingDiskReader(),
        host_id=HOST,
    )
    sweeper = Sweeper(
        leaders=leaders,
        jobs=jobs,
        hypervisor=hypervisor,
        surveyor=surveyor,
        pools=pools,
        base_turns=turns,
        receipts=receipts,
        host_id=HOST,
    )
    yield Place(
        root=tmp_path,
        hypervisor=hypervisor,
        leaders=leaders,
        jobs=jobs,
        turns=turns,
        surveyor=surveyor,
        sweeper=sweeper,
        receipts=receipts,
        waiting=waiting,
    )
    await jobs.close(0)


def names(files: list[pb.FoundFile]) -> dict[str, str]:
    return {one.path: pb.FoundFile.Kind.Name(one.kind).removeprefix("KIND_") for one in files}


async def test_a_survey_lists_directories_domains_bases_and_leftovers_and_tells_whats_foreign(
    place: Place,
) -> None:
    place.directory()
    place.base()
    await place.define(start=True)
    (place.local / "base" / f"{'cd' * 32}.{HOST}.partial").touch()
    (place.local / "base" / f"{'ef' * 32}.manifest").touch()
    (place.shared / "base" / f"{'cd' * 32}.{uuid.uuid4()}.partial").touch()
    (place.local / ".remuda-probe-x").touch()
    (place.local / "notes.txt").touch()
    (place.local / "instances" / "backup").mkdir()
    found = await place.survey()
    (directory,) = found.directories
    assert (directory.owner_host_id, directory.epoch, directory.role) == (HOST, 2, "incoming")
    assert (directory.operation_id, directory.damage, directory.shared) == ("move", "", False)
    assert directory.pool_uid == (place.local / ".remuda-pool").read_text().strip()
    assert [(one.path, one.virtual_bytes) for one in directory.files] == [
        (f"instances/{INSTANCE}/config.img", 0),
        (f"instances/{INSTANCE}/disk.qcow2", 1024),
    ]
    assert [one.epoch for one in found.domains] == [1]
    assert names(list(found.files)) == {
        "instances/backup": "FOREIGN",
        "notes.txt": "FOREIGN",
        ".remuda-probe-x": "TEMPORARY",
        f"base/{DIGEST}.raw": "BASE_IMAGE",
        f"base/{'cd' * 32}.{HOST}.partial": "TEMPORARY",
        f"base/{'ef' * 32}.manifest": "TEMPORARY",
    }, "another host's fetch into the shared pool is that host's"
    (base,) = [one for one in found.files if one.kind == pb.FoundFile.KIND_BASE_IMAGE]
    assert base.in_use


async def test_a_survey_of_one_instance_shows_its_own_and_what_bears_its_name(place: Place) -> None:
    place.directory("shared", role="owner")
    place.base()
    (place.local / "instances" / f"{INSTANCE}.old").mkdir()
    (place.local / "instances" / str(uuid.uuid4())).mkdir()
    found = await place.survey(INSTANCE)
    assert [(one.pool, one.role) for one in found.directories] == [("shared", "owner")]
    assert names(list(found.files)) == {f"instances/{INSTANCE}.old": "FOREIGN"}
    assert not found.domains


async def test_a_copy_in_quarantine_without_a_domain_is_no_domain(place: Place) -> None:
    place.directory(role="owner")
    place.waiting[INSTANCE] = Epoch(2)
    for survey in (await place.survey(), await place.survey(INSTANCE)):
        assert not survey.domains
        assert [one.instance_id for one in survey.directories] == [INSTANCE]


async def test_a_base_stays_in_use_under_a_disk_that_somebody_has_set_aside(place: Place) -> None:
    directory = place.directory()
    place.base()
    directory.rename(directory.with_name("set-aside"))
    (base,) = [one for one in (await place.survey()).files if one.kind == pb.FoundFile.KIND_BASE_IMAGE]
    assert base.in_use


async def test_disks_are_digested_only_when_asked_and_only_while_nobody_runs_on_them(place: Place) -> None:
    place.directory()
    assert not [one.digest for one in (await place.survey()).directories[0].files if one.digest]
    before = [one for one in (await place.survey(digests=True)).directories[0].files if one.digest]
    assert [(one.path, len(one.digest)) for one in before] == [(f"instances/{INSTANCE}/disk.qcow2", 32)]
    await place.define(start=True)
    found = await place.survey(digests=True)
    assert not any(one.digest for one in found.directories[0].files)


async def test_a_damaged_owner_record_is_shown_and_its_directory_is_never_removed(place: Place) -> None:
    directory = place.directory()
    (directory / "owner.json").write_text("{")
    (shown,) = (await place.survey()).directories
    assert "damaged" in shown.damage
    assert shown.owner_host_id == ""
    (receipt,) = await place.sweep(pb.SweepTarget(directory=shown))
    assert (receipt.removed, receipt.reason) == (False, "its owner.json does not name this host")
    assert directory.exists()


async def test_a_pool_that_cannot_be_listed_fails_the_survey_rather_than_looking_empty(place: Place) -> None:
    (place.shared / "instances").rename(place.root / "not mounted")
    with pytest.raises(RemudaError) as failed:
        await place.survey()
    assert failed.value.reason is Reason.STEP_FAILED
    assert "pool shared" in failed.value.message


async def test_what_a_step_removes_while_the_host_is_surveyed_is_left_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = place.directory()
    place.base()

    def removed_just_now(_: object, path: Path) -> DiskLook:
        if path.name == "disk.qcow2":
            path.unlink(missing_ok=True)
        return DiskLook(virtual_bytes=len(path.read_bytes()))

    monkeypatch.setattr(PretendingDiskReader, "look", removed_just_now)
    found = await place.survey()
    assert [one.path for one in found.directories[0].files] == [f"instances/{INSTANCE}/config.img"]
    assert names(list(found.files)) == {f"base/{DIGEST}.raw": "BASE_IMAGE"}
    assert not (directory / "disk.qcow2").exists()


async def test_what_was_shown_is_removed_with_a_receipt_before_and_after(place: Place) -> None:
    directory, base = place.directory(), place.base()
    await place.define()
    found = await place.survey()
    receipts = await place.sweep(
        pb.SweepTarget(domain=found.domains[0]), pb.SweepTarget(directory=found.directories[0])
    )
    assert [one.removed for one in receipts] == [True, True]
    assert await place.hypervisor.view(INSTANCE) is None
    assert not directory.exists()
    # Only now does nothing lie on it.
    (file,) = (await place.survey()).files
    assert [one.removed for one in await place.sweep(pb.SweepTarget(file=file, reason="unused"))] == [True]
    assert not list(base.parent.iterdir())
    assert place.kept() == [
        (what, outcome)
        for what in (
            f"definition of {INSTANCE}",
            f"directory local/instances/{INSTANCE}",
            f"file local/base/{DIGEST}.raw",
        )
        for outcome in ("removing", "removed")
    ]
    last = json.loads(place.receipts.path.read_text().splitlines()[-1])
    assert (last["why"], last["principal"], last["leader_epoch"]) == ("unused", "user/root", 5)


async def test_whatever_is_gone_already_counts_as_removed(place: Place) -> None:
    directory = place.directory()
    found = await place.survey()
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    assert [one.removed for one in await place.sweep(pb.SweepTarget(directory=found.directories[0]))] == [
        True
    ]


@pytest.mark.parametrize("change", ["owner", "file", "another file"])
async def test_a_directory_that_has_changed_since_it_was_shown_stays(place: Place, change: str) -> None:
    directory = place.directory()
    (shown,) = (await place.survey()).directories
    match change:
        case "owner":
            owner = Owner(
                instance_id=INSTANCE,
                host_id=HOST,
                epoch=Epoch(3),
                operation_id=OperationId("another move"),
                role="incoming",
            )
            write_owner(directory, owner)
        case "file":
            (directory / "disk.qcow2").write_text("what the guest wrote")
        case _:
            (directory / "memory.save").write_text("memory")
    (receipt,) = await place.sweep(pb.SweepTarget(directory=shown))
    assert (receipt.removed, receipt.reason) == (False, "it has changed since it was shown")
    assert (directory / "disk.qcow2").exists()
    assert place.kept()[-1][1] == "stays"


async def test_a_directory_of_another_host_on_a_shared_pool_stays(place: Place) -> None:
    directory = place.directory("shared", host=HostId(str(uuid.uuid4())))
    (shown,) = (await place.survey()).directories
    (receipt,) = await place.sweep(pb.SweepTarget(directory=shown))
    assert not receipt.removed
    assert directory.exists()


async def test_neither_a_running_domain_nor_the_directory_below_it_is_removed(place: Place) -> None:
    directory = place.directory()
    await place.define()
    found = await place.survey()
    await place.hypervisor.start(INSTANCE)
    receipts = await place.sweep(
        pb.SweepTarget(domain=found.domains[0]), pb.SweepTarget(directory=found.directories[0])
    )
    assert [one.removed for one in receipts] == [False, False]
    assert "never removed" in receipts[0].reason
    assert "active here" in receipts[1].reason
    assert directory.exists()


async def test_a_domain_that_was_defined_anew_since_it_was_shown_stays(place: Place) -> None:
    await place.define(epoch=1)
    shown = (await place.survey()).domains[0]
    await place.define(epoch=3)
    (receipt,) = await place.sweep(pb.SweepTarget(domain=shown))
    assert receipt.reason == "it has changed since it was shown"
    assert await place.hypervisor.view(INSTANCE) is not None


async def test_a_removal_waits_for_the_step_of_its_instance_that_runs(place: Place) -> None:
    directory = place.directory()
    (shown,) = (await place.survey()).directories
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def step(_: Job) -> pb.StepOutput:
        inside.set()
        await go_on.wait()
        (directory / "disk.qcow2").write_text("written by the step")
        return pb.StepOutput()

    key = StepKey(operation_id="o", step="s", direction=StepKey.DIRECTION_DO, instance_id=INSTANCE)
    place.jobs.start_or_join(key, step)
    await inside.wait()
    sweeping = asyncio.create_task(place.sweep(pb.SweepTarget(directory=shown)))
    await asyncio.sleep(0)
    assert place.kept() == [], "its turn has not come"
    go_on.set()
    (receipt,) = await sweeping
    assert not receipt.removed
    assert directory.exists()


async def test_a_leader_that_was_succeeded_removes_nothing(place: Place) -> None:
    directory = place.directory()
    (shown,) = (await place.survey()).directories
    place.leaders.acknowledge(LeaderRef(cluster_id=7, epoch=6))
    with pytest.raises(RemudaError) as refused:
        await place.sweep(pb.SweepTarget(directory=shown))
    assert refused.value.reason is Reason.STALE_LEADER
    assert directory.exists()
    assert place.kept() == []


async def test_a_base_that_is_asked_for_or_used_again_stays(place: Place) -> None:
    base = place.base()
    (shown,) = (await place.survey()).files
    async with place.turns.turn(base):
        sweeping = asyncio.create_task(place.sweep(pb.SweepTarget(file=shown)))
        await asyncio.sleep(0)
        os.utime(base, (time.time() + 1, time.time() + 1))
    assert (await sweeping)[0].reason == "it has changed since it was shown"
    (shown,) = (await place.survey()).files
    place.directory()
    assert (await place.sweep(pb.SweepTarget(file=shown)))[0].reason == "it is in use"
    assert base.exists()


async def test_a_base_on_a_shared_pool_and_foreign_files_are_refused(place: Place) -> None:
    base = place.base("shared")
    (place.local / "notes.txt").touch()
    found = {one.path: one for one in (await place.survey()).files}
    receipts = await place.sweep(
        pb.SweepTarget(file=found[f"base/{DIGEST}.raw"]), pb.SweepTarget(file=found["notes.txt"])
    )
    assert [one.reason for one in receipts] == [
        "other hosts share the pool and may need it",
        "files of this kind are never removed",
    ]
    assert base.exists()
    assert (place.local / "notes.txt").exists()


async def test_a_fetch_that_goes_on_is_in_use_and_one_that_broke_is_removed(place: Place) -> None:
    partial = place.local / "base" / f"{DIGEST}.{HOST}.partial"
    with partial.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (shown,) = (await place.survey()).files
        assert shown.in_use
        assert (await place.sweep(pb.SweepTarget(file=shown)))[0].reason == "it is in use"
    (shown,) = (await place.survey()).files
    assert (await place.sweep(pb.SweepTarget(file=shown)))[0].removed
    assert not partial.exists()


async def test_a_path_in_an_order_does_not_lead_out_of_the_pool(place: Place) -> None:
    outside = place.root / "outside"
    outside.touch()
    shown = pb.FoundFile(kind=pb.FoundFile.KIND_TEMPORARY, pool="local", path="../outside")
    assert (await place.sweep(pb.SweepTarget(file=shown)))[0].removed, "there is no such file in the pool"
    assert outside.exists()


def test_receipts_are_bounded_and_the_newest_are_kept(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path / "state", kept=3)
    for number in range(8):
        receipts.write({"number": number})
    numbers = [
        json.loads(line)["number"]
        for path in (receipts.older, receipts.path)
        for line in path.read_text().splitlines()
    ]
    assert numbers == [3, 4, 5, 6, 7]

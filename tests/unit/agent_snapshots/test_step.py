"""One order on the fake hypervisor: freezing, thawing, checkpoints, and what is left when it fails."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1.agent_pb2 import RunStepRequest, SnapshotDisk, StepOutput
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1.source_pb2 import ImageSource
from remuda_agent.disks.instance_files import PoolInstanceFiles
from remuda_agent.disks.makers import PretendingDiskMaker
from remuda_agent.disks.owner import write_owner
from remuda_agent.disks.pools import Pool, Pools
from remuda_agent.hypervisor import DomainDescription, PowerState
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor, Faults
from remuda_agent.hypervisor.fake.world import FakeDomain
from remuda_agent.jobs import Job, JobTable
from remuda_agent.observer import Observer
from remuda_agent.snapshots.keeping import CHECKPOINT, LAST
from remuda_agent.snapshots.moments import SCRATCH, Moments
from remuda_agent.snapshots.reading import PretendingDiskContents
from remuda_agent.snapshots.step import DiskSnapshots
from remuda_agent.steps.ports import InstancePaths, Owner
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId
from remuda_core.testing.waiting import wait_for

from tests.unit.agent_snapshots.stores import MemoryStore

HOST, OPERATION = HostId("host-a"), OperationId("operation")
INSTANCE = InstanceId(str(uuid.uuid4()))
IF_POSSIBLE = SnapshotInstanceRequest.QUIESCE_IF_POSSIBLE
REQUIRED = SnapshotInstanceRequest.QUIESCE_REQUIRED
NONE = SnapshotInstanceRequest.QUIESCE_NONE
CRASH, FROZEN = ImageSource.CONSISTENCY_CRASH, ImageSource.CONSISTENCY_FILESYSTEM
DISK_BYTES = 9 << 20


@dataclass(kw_only=True)
class Host:
    fabric: FakeFabric
    hypervisor: FakeHypervisor
    snapshots: DiskSnapshots
    moments: Moments
    store: MemoryStore
    paths: InstancePaths
    files: PoolInstanceFiles

    @property
    def faults(self) -> Faults:
        return self.fabric.faults["a"]

    @property
    def domain(self) -> FakeDomain:
        found = self.fabric.domain("a", INSTANCE)
        assert found is not None
        return found

    def change(self, act: Callable[[FakeDomain], None]) -> None:
        with self.fabric.transaction() as world:
            act(world.domain("a", INSTANCE))

    def request(
        self, quiesce: SnapshotInstanceRequest.Quiesce.ValueType, *, image: str, limit: float = 1000
    ) -> RunStepRequest:
        work = SnapshotDisk(image_id=image, pool="local", manifest_digest="ab" * 32, quiesce=quiesce)
        work.freeze_limit.CopyFrom(Duration(seconds=int(limit)))
        key = StepKey(
            operation_id=OPERATION,
            step="disk_read",
            direction=StepKey.DIRECTION_DO,
            instance_id=INSTANCE,
            epoch=1,
        )
        return RunStepRequest(key=key, snapshot_disk=work)

    async def take(
        self,
        quiesce: SnapshotInstanceRequest.Quiesce.ValueType = IF_POSSIBLE,
        *,
        image: str = "",
        limit: float = 1000,
    ) -> ImageSource:
        request = self.request(quiesce, image=image or str(uuid.uuid4()), limit=limit)
        job = Job(name=(OPERATION, "disk_read", 1), instance_id=INSTANCE)
        return (await self.snapshots.take(request, job)).snapshot

    def nothing_is_left(self) -> None:
        assert not self.domain.frozen
        assert not self.domain.backup
        assert not (self.paths.directory / SCRATCH).exists()


class ScratchMaking(FakeHypervisor):
    """Makes the scratch file of a backup, as libvirt does."""

    async def begin_backup(self, request):  # type: ignore[no-untyped-def]
        await super().begin_backup(request)
        request.scratch.touch()


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> Host:
    fabric = FakeFabric()
    hypervisor = ScratchMaking(fabric, "a")
    (tmp_path / "pool").mkdir()
    pools = Pools([Pool(name="local", path=tmp_path / "pool")])
    pools.prepare()
    files = PoolInstanceFiles(pools, PretendingDiskMaker())
    paths = files.paths("local", INSTANCE)
    paths.directory.mkdir()
    write_owner(
        paths.directory,
        Owner(instance_id=INSTANCE, host_id=HOST, epoch=Epoch(1), operation_id=OPERATION, role="owner"),
    )
    await PretendingDiskMaker().overlay(paths.disk, base=tmp_path / "base", size_bytes=DISK_BYTES)
    store = MemoryStore()
    moments = Moments(
        hypervisor=hypervisor, contents=PretendingDiskContents(), directory=tmp_path / "snapshots"
    )
    await hypervisor.define(
        DomainDescription(
            instance_id=INSTANCE,
            title="guest",
            epoch=Epoch(1),
            operation_id=OPERATION,
            vcpus=1,
            memory_mib=96,
            disk=paths.disk,
            config_drive=paths.config_drive,
            console=tmp_path / "console",
        )
    )
    await hypervisor.start(INSTANCE)
    snapshots = DiskSnapshots(
        hypervisor=hypervisor,
        files=files,
        pools=pools,
        moments=moments,
        uploading=lambda _image, _grant: store,
        host_id=HOST,
    )
    return Host(
        fabric=fabric,
        hypervisor=hypervisor,
        snapshots=snapshots,
        moments=moments,
        store=store,
        paths=paths,
        files=files,
    )


async def test_a_guest_whose_agent_answers_is_frozen_for_the_moment(host: Host) -> None:
    source = await host.take()
    assert source.consistency == FROZEN
    assert source.counts.disk_bytes == DISK_BYTES
    words = host.paths.disk.read_bytes()
    assert host.store.content() == words.ljust(DISK_BYTES, b"\0")
    host.nothing_is_left()
    assert (await host.take(NONE)).consistency == CRASH


async def test_without_an_agent_the_image_is_as_after_a_loss_of_power_or_refused(host: Host) -> None:
    host.change(lambda domain: setattr(domain, "guest_agent", False))
    assert (await host.take()).consistency == CRASH
    with pytest.raises(RemudaError) as refused:
        await host.take(REQUIRED)
    assert refused.value.reason is Reason.QUIESCE_FAILED
    host.nothing_is_left()


async def test_a_freeze_that_did_not_hold_until_the_moment_counts_for_nothing(host: Host) -> None:
    assert (await host.take(limit=0)).consistency == CRASH
    with pytest.raises(RemudaError, match="did not stay frozen") as refused:
        await host.take(REQUIRED, limit=0)
    assert refused.value.reason is Reason.QUIESCE_FAILED
    host.nothing_is_left()
    assert len(host.store.committed) == 1


@pytest.mark.parametrize("call", ["guarded", "begin_backup", "thaw", "settle"])
async def test_whatever_fails_nothing_stays_frozen_or_open_and_the_next_try_is_whole(
    host: Host, call: str
) -> None:
    # Three ways of beginning a backup are tried.
    host.faults.fail(call, times=3 if call == "begin_backup" else 1)
    with pytest.raises(RemudaError, match="injected"):
        await host.take()
    host.nothing_is_left()
    assert not (host.paths.directory / LAST).exists()
    source = await host.take()
    assert source.consistency == FROZEN
    host.nothing_is_left()


async def test_an_end_that_failed_is_made_up_for_by_the_same_order(host: Host) -> None:
    host.faults.fail("end_backup")
    image = str(uuid.uuid4())
    with pytest.raises(RemudaError, match="injected"):
        await host.take(image=image)
    assert host.domain.backup
    source = await host.take(image=image)
    assert source == _committed(host.store)
    host.nothing_is_left()
    assert [done.manifest for done in host.store.committed] == [host.store.committed[0].manifest] * 2


async def test_leftovers_of_a_killed_agent_end_when_the_next_one_starts(host: Host) -> None:
    gate = host.faults.hang("settle")
    working = asyncio.create_task(host.take())
    await wait_for(lambda: host.domain.backup, timeout=60, last_status=lambda: "no backup")
    # What the process held is gone with it; what the hypervisor holds is not.
    host.faults.fail("end_backup")
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    gate.set()
    assert host.domain.backup
    await host.snapshots.end_leftovers(host.files.owners())
    host.nothing_is_left()


async def test_an_undo_comes_after_the_reading_that_it_stops_and_leaves_nothing(host: Host) -> None:
    started = asyncio.Event()

    class Slow(MemoryStore):
        async def lacking(self, digests):  # type: ignore[no-untyped-def]
            started.set()
            await asyncio.sleep(0.1)
            return set(digests)

    slow = Slow()
    snapshots = DiskSnapshots(
        hypervisor=host.hypervisor,
        files=host.files,
        pools=host.snapshots._pools,
        moments=host.moments,
        uploading=lambda _image, _grant: slow,
        host_id=HOST,
    )
    jobs = JobTable()
    request = host.request(NONE, image=str(uuid.uuid4()))

    def do(job: Job) -> asyncio.Future[StepOutput]:
        return asyncio.ensure_future(snapshots.take(request, job))

    job, _ = jobs.start_or_join(request.key, do)
    again, joined = jobs.start_or_join(request.key, do)
    assert joined
    assert again is job
    await started.wait()
    undoing = RunStepRequest()
    undoing.CopyFrom(request)
    undoing.key.direction = StepKey.DIRECTION_UNDO
    undo, _ = jobs.start_or_join(undoing.key, lambda job: snapshots.undo(undoing, job))
    await undo.result()
    host.nothing_is_left()


async def test_the_next_snapshot_begins_at_the_last_ones_checkpoint_where_there_is_one(host: Host) -> None:
    first = str(uuid.uuid4())
    assert not (await host.take(image=first)).counts.incremental
    assert host.domain.checkpoints == [f"remuda-{first}"]
    second = str(uuid.uuid4())
    assert (await host.take(image=second)).counts.incremental
    assert host.domain.checkpoints == [f"remuda-{second}"], "one is kept"
    # What is kept beside the disk cannot be used.
    (host.paths.directory / CHECKPOINT).write_bytes(b"damaged")
    assert not (await host.take()).counts.incremental
    assert len(host.domain.checkpoints) == 1
    # libvirt does not know it any more.
    host.change(lambda domain: domain.checkpoints.clear())
    assert not (await host.take()).counts.incremental
    # QEMU does not want it.
    host.faults.fail("begin_backup")
    assert not (await host.take()).counts.incremental
    assert (await host.take()).counts.incremental


async def test_a_checkpoint_that_nobody_read_to_its_end_is_dropped_for_the_one_before(host: Host) -> None:
    await host.take()
    [kept] = host.domain.checkpoints
    host.store.failures.append(RemudaError(Reason.DISK_FULL, "no room"))
    host.paths.disk.write_bytes(host.paths.disk.read_bytes() + b"more")
    with pytest.raises(RemudaError, match="no room"):
        await host.take()
    assert host.domain.checkpoints[0] == kept
    assert (await host.take()).counts.incremental
    assert len(host.domain.checkpoints) == 1


async def test_the_instant_in_which_a_guest_is_stopped_is_shown_to_nobody(host: Host) -> None:
    observer = Observer(
        host.hypervisor, first_sequence=1, migrates=lambda _: False, settling=host.moments.settling
    )
    gate = host.faults.hang("settle")
    working = asyncio.create_task(host.take())
    await wait_for(host.moments.settling, timeout=60, last_status=lambda: "not yet")
    host.change(lambda domain: setattr(domain, "paused", True))
    view = await host.hypervisor.view(INSTANCE)
    assert view is not None
    assert view.power_state is PowerState.PAUSED
    assert (await observer.one(INSTANCE)).power_state == Instance.POWER_STATE_RUNNING
    [shown] = (await observer.everything()).instances
    assert shown.power_state == Instance.POWER_STATE_RUNNING
    gate.set()
    await working
    # Afterwards a pause is its owner's again.
    assert (await observer.one(INSTANCE)).power_state == Instance.POWER_STATE_PAUSED


def _committed(store: MemoryStore) -> ImageSource:
    done = store.committed[-1]
    source = ImageSource(consistency=done.consistency, counts=done.counts)
    source.snapshot_time.FromDatetime(done.time)
    source.counts.stored_bytes = store.sent_bytes
    return source

"""Steps on the fake hypervisor: what they refuse, and what they do about a guest that does not obey."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1 import agent_pb2 as pb
from remuda.agent.v1.common_pb2 import DomainSpec, LeaderRef, Nic, StepKey
from remuda.compute.v1.instance_pb2 import Instance
from remuda_agent.disks.base_images import PretendingBaseImages
from remuda_agent.disks.instance_files import PoolInstanceFiles
from remuda_agent.disks.makers import PretendingDiskMaker
from remuda_agent.disks.owner import read_owner
from remuda_agent.disks.pools import Pool, Pools
from remuda_agent.greetings import Greetings
from remuda_agent.hypervisor import MigrationRequest
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor, FakeTimings
from remuda_agent.jobs import JobTable
from remuda_agent.leaders import LeaderGuard
from remuda_agent.network.bridges import PretendedBridges
from remuda_agent.observer import Observer
from remuda_agent.quarantine import Found, Quarantine
from remuda_agent.resumes import ResumeTimes
from remuda_agent.snapshots.moments import Moments
from remuda_agent.snapshots.reading import PretendingDiskContents
from remuda_agent.snapshots.step import DiskSnapshots
from remuda_agent.snapshots.uploading import PretendingUploader
from remuda_agent.steps import StepRunner, runner
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId
from remuda_core.testing.waiting import wait_for

INSTANCE = InstanceId(str(uuid.uuid4()))
DIGEST = "ab" * 32
DO, UNDO = StepKey.DIRECTION_DO, StepKey.DIRECTION_UNDO


@dataclass(kw_only=True)
class Host:
    name: str
    fabric: FakeFabric
    hypervisor: FakeHypervisor
    steps: StepRunner
    jobs: JobTable
    pool: Path

    @classmethod
    async def of(cls, name: str, fabric: FakeFabric, directory: Path, shared: Path) -> "Host":
        pool = directory / name
        pool.mkdir()
        hypervisor, jobs = FakeHypervisor(fabric, name), JobTable()
        pools = Pools([Pool(name="local", path=pool), Pool(name="shared", path=shared, shared=True)])
        pools.prepare()
        state = directory / f"{name}-state"

        async def nothing() -> Found:
            return Found(copies={})

        quarantine = await Quarantine.open(state, "boot-1", nothing, leaders=LeaderGuard(state))
        files = PoolInstanceFiles(pools, PretendingDiskMaker())
        steps = StepRunner(
            hypervisor=hypervisor,
            files=files,
            images=PretendingBaseImages(pools),
            observer=Observer(hypervisor, first_sequence=1, migrates=jobs.migrates),
            resumes=ResumeTimes(),
            greetings=Greetings(hypervisor),
            host_id=HostId(f"host-{name}"),
            bridges=PretendedBridges({"physnet": f"br-{name}"}),
            console_dir=directory / f"{name}-console",
            quarantine=quarantine,
            snapshots=DiskSnapshots(
                hypervisor=hypervisor,
                files=files,
                pools=pools,
                moments=Moments(
                    hypervisor=hypervisor, contents=PretendingDiskContents(), directory=state / "snapshots"
                ),
                uploading=lambda _image, _grant: PretendingUploader(),
                host_id=HostId(f"host-{name}"),
            ),
        )
        return cls(name=name, fabric=fabric, hypervisor=hypervisor, steps=steps, jobs=jobs, pool=pool)

    async def run(
        self, step: str, *, direction: "StepKey.Direction.ValueType" = DO, epoch: int = 1, **work: Any
    ) -> pb.StepOutput:
        return await (await self.begin(step, direction=direction, epoch=epoch, **work))

    async def begin(
        self, step: str, *, direction: "StepKey.Direction.ValueType" = DO, epoch: int = 1, **work: Any
    ) -> "asyncio.Task[pb.StepOutput]":
        key = StepKey(
            operation_id="operation",
            step=step,
            direction=direction,
            instance_id=INSTANCE,
            epoch=epoch,
            leader=LeaderRef(epoch=1),
        )
        request = pb.RunStepRequest(key=key, **work)
        job, _ = self.jobs.start_or_join(key, lambda job: self.steps.run(request, job))
        assert job.task is not None
        return job.task

    async def launch(self, *, pool: str = "local") -> None:
        work = pb.EnsureBaseImage(image_id="image", manifest_digest=DIGEST, pool=pool)
        await self.run("base", ensure_base_image=work)
        await self.run("disks", prepare_disks=pb.PrepareDisks(spec=spec(pool)))
        await self.run("define", define_domain=pb.DefineDomain(spec=spec(pool)))
        await self.run("start", start_domain=pb.StartDomain())

    async def power(self) -> str:
        view = await self.hypervisor.view(INSTANCE)
        return "ABSENT" if view is None else view.power_state

    @property
    def directory(self) -> Path:
        return self.pool / "instances" / INSTANCE


def spec(pool: str = "local", *, network: str = "physnet") -> DomainSpec:
    return DomainSpec(
        instance_id=INSTANCE,
        hostname="web",
        vcpus=1,
        memory_mib=64,
        pool=pool,
        manifest_digest=DIGEST,
        nics=[Nic(physical_network=network, mac_address="52:54:00:00:00:01", address="10.0.0.2")],
    )


def stop(grace: float = 5.0, *, force: bool = False) -> pb.StopDomain:
    duration = Duration()
    duration.FromNanoseconds(int(grace * 1e9))
    return pb.StopDomain(grace=duration, force=force)


async def migrated(source: Host, target: Host, *, shared: bool) -> None:
    """What the hypervisors do between the steps."""
    request = MigrationRequest(
        instance_id=INSTANCE,
        operation_id=OperationId("operation"),
        target_epoch=Epoch(2),
        target_hostname=target.name,
        shared_disks=shared,
    )
    await source.hypervisor.migrate(request)


@pytest_asyncio.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[tuple[Host, Host]]:
    fabric, shared = FakeFabric(), tmp_path / "shared"
    shared.mkdir()
    async with fabric.awake():
        hosts = [await Host.of(name, fabric, tmp_path, shared) for name in ("a", "b")]
        yield hosts[0], hosts[1]


@pytest.fixture
def here(hosts: tuple[Host, Host]) -> Host:
    return hosts[0]


async def test_a_guest_that_hears_the_power_button_goes_down_by_itself(here: Host) -> None:
    await here.launch()
    output = await here.run("stop", stop_domain=stop())
    assert (output.forced, output.observed.power_state) == (False, Instance.POWER_STATE_SHUTOFF)
    assert output.observed.reason == "shutdown"


async def test_a_guest_that_still_boots_loses_the_first_press_and_hears_a_later_one(
    here: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PRESS_AGAIN_SECONDS", 0.1)
    here.fabric.timings = FakeTimings(boot=0.5)
    await here.launch()
    output = await here.run("stop", stop_domain=stop())
    assert not output.forced


async def test_a_guest_that_ignores_the_power_button_is_switched_off_when_its_grace_is_over(
    here: Host,
) -> None:
    here.fabric.timings = FakeTimings(shutdown=float("inf"))
    await here.launch()
    output = await here.run("stop", stop_domain=stop(0.3))
    assert (output.forced, output.observed.power_state) == (True, Instance.POWER_STATE_SHUTOFF)


@pytest.mark.parametrize("paused", [False, True])
async def test_a_forced_stop_and_one_of_a_paused_guest_wait_for_nobody(here: Host, paused: bool) -> None:
    here.fabric.timings = FakeTimings(shutdown=float("inf"))
    await here.launch()
    if paused:
        await here.hypervisor.pause(INSTANCE)
    async with asyncio.timeout(2):
        assert (await here.run("stop", stop_domain=stop(60.0, force=not paused))).forced


async def test_a_stop_is_given_up_when_it_is_undone(here: Host) -> None:
    here.fabric.timings = FakeTimings(shutdown=float("inf"))
    await here.launch()
    stopping = await here.begin("stop", stop_domain=stop(60.0))
    await asyncio.sleep(0)
    await here.run("stop", direction=UNDO, stop_domain=stop(60.0))
    with pytest.raises(RemudaError) as given_up:
        await stopping
    assert given_up.value.reason is Reason.CANCELLED
    assert await here.power() == "RUNNING"


async def test_starting_lets_a_paused_guest_go_on(here: Host) -> None:
    await here.launch()
    await here.hypervisor.pause(INSTANCE)
    await here.run("start", start_domain=pb.StartDomain())
    assert await here.power() == "RUNNING"


async def test_a_host_without_the_network_refuses_before_it_makes_anything(here: Host) -> None:
    with pytest.raises(RemudaError) as refused:
        await here.run("disks", prepare_disks=pb.PrepareDisks(spec=spec(network="other")))
    assert (refused.value.reason, "other" in str(refused.value)) == (Reason.STEP_FAILED, True)
    assert not here.directory.exists()


async def test_an_order_for_an_older_copy_is_refused_in_both_directions(here: Host) -> None:
    await here.launch()
    await here.hypervisor.set_epoch(INSTANCE, epoch=Epoch(5), operation_id=OperationId("newer"))
    for direction in (DO, UNDO):
        with pytest.raises(RemudaError) as refused:
            await here.run("start", direction=direction, epoch=4, start_domain=pb.StartDomain())
        assert refused.value.reason is Reason.STALE_EPOCH
    assert await here.power() == "RUNNING"


async def test_a_move_of_local_disks_hands_everything_over(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    await source.launch()
    incoming = pb.PrepareIncoming(spec=spec())
    await target.run("incoming", epoch=2, prepare_incoming=incoming)
    owner = read_owner(target.directory)
    assert owner is not None
    assert (owner.role, owner.epoch) == ("incoming", 2)
    await migrated(source, target, shared=False)
    with pytest.raises(RemudaError) as refused:
        await target.run("incoming", epoch=2, direction=UNDO, prepare_incoming=incoming)
    assert refused.value.reason is Reason.MIGRATION_FAILED
    await source.run("release", release_source=pb.ReleaseSource(pool="local"))
    output = await target.run("finish", epoch=2, finish_incoming=pb.FinishIncoming(pool="local"))
    assert (output.HasField("downtime_ms"), output.guest_agent_answered) == (True, True)
    owner = read_owner(target.directory)
    assert owner is not None
    assert owner == replace(owner, role="owner", host_id=HostId("host-b"), epoch=Epoch(2))
    assert (await source.power(), await target.power()) == ("ABSENT", "RUNNING")
    assert not source.directory.exists()


async def test_a_move_on_shared_storage_leaves_the_files_where_they_are(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    await source.launch(pool="shared")
    directory = source.pool.parent / "shared" / "instances" / INSTANCE
    before = sorted(path.name for path in directory.iterdir())
    await target.run(
        "incoming", epoch=2, prepare_incoming=pb.PrepareIncoming(spec=spec("shared"), shared_disks=True)
    )
    await migrated(source, target, shared=True)
    await source.run("release", release_source=pb.ReleaseSource(pool="shared", shared_disks=True))
    await target.run("finish", epoch=2, finish_incoming=pb.FinishIncoming(pool="shared"))
    assert sorted(path.name for path in directory.iterdir()) == before
    owner = read_owner(directory)
    assert owner is not None
    assert (owner.host_id, owner.epoch) == ("host-b", 2)
    # What the source still owes later can do no harm.
    with pytest.raises(RemudaError):
        await source.run("finish", epoch=1, finish_incoming=pb.FinishIncoming(pool="shared"))
    with pytest.raises(RemudaError) as refused:
        await source.run("remove", remove_instance=pb.RemoveInstance(pool="shared"))
    assert refused.value.reason is Reason.STALE_EPOCH
    assert directory.exists()


async def test_an_undone_move_leaves_nothing_at_the_target_and_the_source_untouched(
    hosts: tuple[Host, Host],
) -> None:
    source, target = hosts
    await source.launch()
    incoming = pb.PrepareIncoming(spec=spec())
    await target.run("incoming", epoch=2, prepare_incoming=incoming)
    for _ in range(2):
        await target.run("incoming", epoch=2, direction=UNDO, prepare_incoming=incoming)
    assert (await source.power(), await target.power()) == ("RUNNING", "ABSENT")
    assert source.directory.exists()
    assert not target.directory.exists()


async def test_a_copy_that_runs_is_never_released(here: Host) -> None:
    await here.launch()
    with pytest.raises(RemudaError) as refused:
        await here.run("release", release_source=pb.ReleaseSource(pool="local"))
    assert refused.value.reason is Reason.HYPERVISOR_ERROR
    assert await here.power() == "RUNNING"
    assert here.directory.exists()


async def test_a_paused_guest_is_left_paused_at_the_target(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    await source.launch()
    await target.run("incoming", epoch=2, prepare_incoming=pb.PrepareIncoming(spec=spec()))
    await migrated(source, target, shared=False)
    for _ in range(2):
        await target.run("finish", epoch=2, finish_incoming=pb.FinishIncoming(pool="local", paused=True))
        assert await target.power() == "PAUSED"


async def test_a_guest_that_shut_itself_down_after_its_arrival_is_ours_and_said_to_be_off(
    hosts: tuple[Host, Host],
) -> None:
    source, target = hosts
    await source.launch()
    await target.run("incoming", epoch=2, prepare_incoming=pb.PrepareIncoming(spec=spec()))
    await migrated(source, target, shared=False)
    target.fabric.power_button_inside("b", INSTANCE)

    async def off() -> bool:
        return await target.power() == "SHUTOFF"

    await wait_for(off, timeout=5)
    output = await target.run("finish", epoch=2, finish_incoming=pb.FinishIncoming(pool="local"))
    assert output.observed.power_state == Instance.POWER_STATE_SHUTOFF
    owner = read_owner(target.directory)
    assert owner is not None
    assert owner.role == "owner"


async def test_a_second_copy_is_paused_and_never_more_than_that(here: Host) -> None:
    await here.launch()
    for _ in range(2):
        output = await here.run("pause", pause_domain=pb.PauseDomain())
        assert output.observed.power_state == Instance.POWER_STATE_PAUSED
    await here.run("pause", direction=UNDO, pause_domain=pb.PauseDomain())
    assert await here.power() == "PAUSED"
    assert here.directory.exists()


async def test_where_no_copy_of_that_epoch_runs_there_is_nothing_to_pause(here: Host) -> None:
    output = await here.run("pause", pause_domain=pb.PauseDomain())
    assert output.observed.power_state == Instance.POWER_STATE_ABSENT
    await here.launch()
    await here.run("pause", epoch=2, pause_domain=pb.PauseDomain())
    assert await here.power() == "RUNNING"
    await here.hypervisor.destroy(INSTANCE)
    output = await here.run("pause", pause_domain=pb.PauseDomain())
    assert output.observed.power_state == Instance.POWER_STATE_SHUTOFF


async def test_a_guest_that_goes_off_while_it_is_to_be_paused_needs_no_pause(
    here: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.launch()
    pause = here.hypervisor.pause

    async def too_late(instance: InstanceId) -> None:
        await here.hypervisor.destroy(instance)
        await pause(instance)

    monkeypatch.setattr(here.hypervisor, "pause", too_late)
    output = await here.run("pause", pause_domain=pb.PauseDomain())
    assert output.observed.power_state == Instance.POWER_STATE_SHUTOFF


async def test_a_pause_that_does_not_take_is_told(here: Host) -> None:
    await here.launch()
    here.fabric.faults["a"].fail("pause", "the monitor does not answer")
    with pytest.raises(RemudaError, match="monitor"):
        await here.run("pause", pause_domain=pb.PauseDomain())


@pytest.mark.parametrize("pool", ["local", "shared"])
async def test_a_target_names_the_bridges_that_the_guest_will_be_plugged_into(
    hosts: tuple[Host, Host], pool: str
) -> None:
    _, target = hosts
    work = pb.PrepareIncoming(spec=spec(pool), shared_disks=pool == "shared")
    output = await target.run("incoming", epoch=2, prepare_incoming=work)
    assert dict(output.bridges) == {"physnet": "br-b"}


async def test_what_is_owed_to_a_guest_that_is_gone_with_its_directory_is_settled(here: Host) -> None:
    with pytest.raises(RemudaError) as settled:
        await here.run("finish", epoch=2, finish_incoming=pb.FinishIncoming(pool="local"))
    assert settled.value.reason is Reason.GUEST_STOPPED
    await here.launch()
    await here.run("remove", remove_instance=pb.RemoveInstance(pool="local"))
    with pytest.raises(RemudaError) as settled:
        await here.run("finish", epoch=2, finish_incoming=pb.FinishIncoming(pool="local"))
    assert settled.value.reason is Reason.GUEST_STOPPED


async def test_a_guest_whose_directory_is_gone_is_not_finished(here: Host) -> None:
    await here.launch()
    await here.hypervisor.set_epoch(INSTANCE, epoch=Epoch(2), operation_id=OperationId("operation"))
    for path in here.directory.iterdir():
        path.unlink()
    here.directory.rmdir()
    with pytest.raises(RemudaError) as refused:
        await here.run("finish", epoch=2, finish_incoming=pb.FinishIncoming(pool="local"))
    assert refused.value.reason is Reason.STEP_FAILED


async def test_a_guest_deleted_before_its_move_was_finished_leaves_no_disk_on_the_shared_pool(
    hosts: tuple[Host, Host],
) -> None:
    source, target = hosts
    await source.launch(pool="shared")
    directory = source.pool.parent / "shared" / "instances" / INSTANCE
    incoming = pb.PrepareIncoming(spec=spec("shared"), shared_disks=True)
    await target.run("incoming", epoch=2, prepare_incoming=incoming)
    await migrated(source, target, shared=True)
    await target.run("remove", epoch=2, remove_instance=pb.RemoveInstance(pool="shared"))
    assert not directory.exists()


async def test_a_removal_that_leaves_files_says_so(here: Host) -> None:
    await here.launch()
    (here.directory / "owner.json").unlink()
    with pytest.raises(RemudaError) as refused:
        await here.run("remove", remove_instance=pb.RemoveInstance(pool="local"))
    assert refused.value.reason is Reason.STEP_FAILED

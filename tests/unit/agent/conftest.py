"""The source of a migration: an agent's part in it, on the fake hypervisor."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1.common_pb2 import LeaderRef, StepKey
from remuda.agent.v1.migration_pb2 import MigrationPolicy, MigrationTarget, StartMigration
from remuda_agent.hypervisor import DomainDescription, DomainNic, DomainView
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor
from remuda_agent.jobs import JobTable
from remuda_agent.migrating import Migrations
from remuda_core.errors import RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId
from remuda_core.testing.waiting import wait_for

INSTANCE, OPERATION = InstanceId("6b0ff1d4-4f6b-4b41-9a7c-0b54a1f4d8f7"), "operation"
NEVER = float("inf")


def start(*, timeout: float = 0.0, pause: bool = False, target: str = "b") -> StartMigration:
    policy = MigrationPolicy(pause_on_timeout=pause)
    if timeout:
        duration = Duration()
        duration.FromNanoseconds(int(timeout * 1e9))
        policy.timeout.CopyFrom(duration)
    return StartMigration(
        key=StepKey(
            operation_id=OPERATION,
            step="guest_moved",
            direction=StepKey.DIRECTION_DO,
            instance_id=INSTANCE,
            epoch=1,
            leader=LeaderRef(epoch=1),
        ),
        target_epoch=2,
        target=MigrationTarget(hostname=target, transport="tcp"),
        policy=policy,
        shared_disks=True,
    )


@dataclass(kw_only=True)
class Source:
    """An agent's part in it; `restarted` is the next life of the same agent."""

    fabric: FakeFabric
    directory: Path
    jobs: JobTable
    migrations: Migrations
    hypervisor: FakeHypervisor

    @classmethod
    def of(cls, fabric: FakeFabric, directory: Path) -> "Source":
        hypervisor, jobs = FakeHypervisor(fabric, "a"), JobTable()
        migrations = Migrations(
            hypervisor=hypervisor, jobs=jobs, directory=directory, host_id=HostId("host-a")
        )
        return cls(
            fabric=fabric, directory=directory, jobs=jobs, migrations=migrations, hypervisor=hypervisor
        )

    def restarted(self) -> "Source":
        return Source.of(self.fabric, self.directory)

    async def view(self, host: str = "a") -> DomainView | None:
        return await FakeHypervisor(self.fabric, host).view(INSTANCE)

    async def until_job(self) -> None:
        await wait_for(lambda: self.hypervisor.job_stats(INSTANCE), timeout=60)

    async def failure(self, request: StartMigration) -> RemudaError:
        job, _ = self.migrations.start_or_join(request)
        with pytest.raises(RemudaError) as failed:
            await asyncio.wait_for(job.result(), 10)
        return failed.value

    @property
    def kinds(self) -> list[str]:
        return [milestone.type for milestone in self.migrations.milestones(OPERATION)]

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir()) if self.directory.exists() else []


@pytest_asyncio.fixture
async def source(tmp_path: Path) -> AsyncIterator[Source]:
    """Its guest runs at epoch 1; host b is there."""
    fabric = FakeFabric()
    FakeHypervisor(fabric, "b")
    made = Source.of(fabric, tmp_path / "migrations")
    await made.hypervisor.define(
        DomainDescription(
            instance_id=INSTANCE,
            title="web",
            epoch=Epoch(1),
            operation_id=OperationId("launch"),
            vcpus=1,
            memory_mib=64,
            disk=Path("/disk"),
            config_drive=Path("/config"),
            console=Path("/console"),
            nics=(DomainNic(mac_address="52:54:00:00:00:0a", bridge="br0"),),
        )
    )
    await made.hypervisor.start(INSTANCE)
    async with fabric.awake():
        yield made
        await made.jobs.close(0)

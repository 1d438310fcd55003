"""A host whose steps are real, whose images come from a shelf, and whose guests are files."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

from remuda.agent.v1 import agent_pb2 as pb
from remuda.agent.v1.common_pb2 import DomainSpec, LeaderRef, StepKey
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda_agent.base_cache.cache import BaseCache
from remuda_agent.base_cache.fetching import FetchedBaseImages
from remuda_agent.base_cache.promises import Promises
from remuda_agent.disks.base_turns import BaseTurns
from remuda_agent.disks.instance_files import PoolInstanceFiles
from remuda_agent.disks.makers import PretendingDiskMaker
from remuda_agent.disks.pools import Pool, Pools
from remuda_agent.disks.readers import PretendingDiskReader
from remuda_agent.greetings import Greetings
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor
from remuda_agent.jobs import JobTable
from remuda_agent.leaders import LeaderGuard
from remuda_agent.network.bridges import PretendedBridges
from remuda_agent.observer import Observer
from remuda_agent.quarantine import Quarantine
from remuda_agent.quarantine.standing import Found
from remuda_agent.resumes import ResumeTimes
from remuda_agent.steps.runner import StepRunner
from remuda_core.ids import Epoch, HostId, ImageId, InstanceId
from remuda_core.images.base_file import base_path
from remuda_core.images.chunks import Digest, digest_of
from remuda_core.images.fetch import FetchProgress, ImageFetcher, OnManifest
from remuda_core.images.manifest import Manifest, serialize
from remuda_core.telemetry.metrics import Metrics

HOST = HostId("11111111-1111-4111-8111-111111111111")
KIB = 1 << 10
PAGE = 4 * KIB


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image of one chunk."""

    number: int
    pages: int

    @property
    def data(self) -> bytes:
        return bytes([self.number + 1]) * self.bytes

    @property
    def bytes(self) -> int:
        return self.pages * PAGE

    @property
    def manifest(self) -> Manifest:
        return Manifest(virtual_bytes=self.bytes, digests=(digest_of(self.data),))

    @property
    def digest(self) -> Digest:
        return digest_of(serialize(self.manifest))


class Shelf(ImageFetcher):
    """Every image at hand; what is asked for is counted, and may be made to wait or to fail."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__(cast(Any, [None]), owner=HOST)
        self.samples = {sample.digest: sample for sample in samples}
        self.fetched: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[Exception] = []
        self.asked_by: list[bytes] = []

    async def fetch(
        self,
        *,
        image_id: ImageId,
        manifest_digest: Digest,
        grant: SignedGrant,
        directory: Path,
        known: Sequence[Path] = (),
        on_progress: Callable[[FetchProgress], None] = lambda _: None,
        on_manifest: OnManifest | None = None,
    ) -> Path:
        sample, base = self.samples[manifest_digest], base_path(directory, manifest_digest)
        self.asked_by.append(grant.grant)
        if base.exists():
            return base
        assert on_manifest is not None
        await on_manifest(sample.manifest)
        self.fetched.append(sample.number)
        on_progress(FetchProgress(total_bytes=sample.bytes, done_bytes=0, received_bytes=0))
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        base.with_suffix(".manifest").write_bytes(b"")  # of no size: sums stay easy
        with base.open("xb") as file:
            file.write(sample.data)
            os.fsync(file.fileno())
        on_progress(
            FetchProgress(total_bytes=sample.bytes, done_bytes=sample.bytes, received_bytes=sample.bytes)
        )
        return base


class SlowDiskMaker(PretendingDiskMaker):
    """Gives everybody else a chance before and after it looks at the base."""

    async def overlay(self, path: Path, *, base: Path, size_bytes: int) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        assert base.is_file(), f"the base of {path} is gone"
        await super().overlay(path, base=base, size_bytes=size_bytes)


@dataclass(kw_only=True)
class CachingHost:
    """`restarted` is the next life of the same agent."""

    root: Path
    bound: int
    shelf: Shelf
    shared: bool = False
    least_free_bytes: int = 0
    clock: Callable[[], float] | None = None
    metrics: Metrics = field(default_factory=Metrics)
    hypervisor: FakeHypervisor = field(default_factory=lambda: FakeHypervisor(FakeFabric(), "a"))

    async def restarted(self) -> "CachingHost":
        self.pool = Pool(name="local", path=self.root, shared=self.shared, base_cache_bytes=self.bound)
        pools = self.pools = Pools([self.pool])
        pools.prepare()
        self.jobs, self.turns, self.promises = JobTable(), BaseTurns(), Promises()
        self.cache = BaseCache(
            pools=pools,
            turns=self.turns,
            promises=self.promises,
            reader=PretendingDiskReader(),
            host_id=HOST,
            metrics=self.metrics,
            least_free_bytes=self.least_free_bytes,
            **({"clock": self.clock} if self.clock else {}),
        )
        self.images = FetchedBaseImages(
            pools=pools,
            fetcher=self.shelf,
            turns=self.turns,
            cache=self.cache,
            promises=self.promises,
            metrics=self.metrics,
        )
        state = self.root.with_name(f"{self.root.name}-state")

        async def nothing() -> Found:
            return Found(copies={})

        self.steps = StepRunner(
            hypervisor=self.hypervisor,
            files=PoolInstanceFiles(pools, SlowDiskMaker(), least_free_bytes=0, on_removed=self.cache.wake),
            images=self.images,
            observer=Observer(self.hypervisor, first_sequence=1, migrates=self.jobs.migrates),
            resumes=ResumeTimes(),
            greetings=Greetings(self.hypervisor),
            host_id=HOST,
            bridges=PretendedBridges({}),
            console_dir=state / "console",
            quarantine=await Quarantine.open(state, "boot-1", nothing, leaders=LeaderGuard(state)),
            snapshots=Mock(),  # never asked for here
        )
        return self

    async def step(self, guest: int, step: str, *, undo: bool = False, **work: Any) -> pb.StepOutput:
        key = StepKey(
            operation_id=f"operation-{guest}",
            step=step,
            direction=StepKey.DIRECTION_UNDO if undo else StepKey.DIRECTION_DO,
            instance_id=instance(guest),
            epoch=Epoch(1),
            leader=LeaderRef(epoch=1),
        )
        request = pb.RunStepRequest(key=key, **work)
        job, _ = self.jobs.start_or_join(key, lambda job: self.steps.run(request, job))
        return await job.result()

    async def ensure(self, guest: int, sample: Sample) -> None:
        work = pb.EnsureBaseImage(
            image_id=f"image-{sample.number}",
            manifest_digest=sample.digest.hex(),
            pool="local",
            grant=SignedGrant(grant=f"grant-{guest}".encode()),
        )
        await self.step(guest, "base", ensure_base_image=work)

    async def leave(self, guest: int) -> None:
        await self.step(guest, "base", undo=True, ensure_base_image=pb.EnsureBaseImage())

    async def lay(self, guest: int, sample: Sample) -> None:
        spec = DomainSpec(
            instance_id=instance(guest),
            hostname="web",
            pool="local",
            image_id=f"image-{sample.number}",
            manifest_digest=sample.digest.hex(),
        )
        work = pb.PrepareDisks(spec=spec, grant=SignedGrant(grant=f"grant-{guest}".encode()))
        await self.step(guest, "disks", prepare_disks=work)

    async def remove(self, guest: int) -> None:
        await self.step(guest, "removed", remove_instance=pb.RemoveInstance(pool="local"))

    def base(self, sample: Sample) -> Path:
        return base_path(self.pool.bases, sample.digest)

    def there(self) -> set[int]:
        """Numbers of the images that are cached."""
        return {one.number for one in self.shelf.samples.values() if self.base(one).exists()}

    def value(self, name: str) -> float:
        return self.metrics.value(f"remuda_base_cache_{name}", {"pool": "local"}) or 0.0


def instance(guest: int) -> InstanceId:
    return InstanceId(f"00000000-0000-4000-8000-{guest:012}")

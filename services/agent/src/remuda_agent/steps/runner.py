"""One function per kind of work and direction, each looking at what is there before it acts.

The table at the end is the whole vocabulary of RunStep.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from remuda.agent.v1.agent_pb2 import RunStepRequest, StepOutput
from remuda.agent.v1.common_pb2 import DomainSpec, StepKey
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId

from remuda_agent.greetings import Greetings
from remuda_agent.hypervisor import DomainDescription, DomainNic, Hypervisor
from remuda_agent.jobs import Job
from remuda_agent.observer import Observer
from remuda_agent.quarantine import Quarantine
from remuda_agent.resumes import ResumeTimes
from remuda_agent.snapshots.step import DiskSnapshots
from remuda_agent.steps.ports import BaseImages, InstanceFiles, InstancePaths, Networks, Owner

PRESS_AGAIN_SECONDS = 10.0
"""A press that comes while the guest still boots is lost: facts of ACPI under QEMU."""

POLL_SECONDS = 0.2


class StepRunner:
    """Carries out the work of one host."""

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        files: InstanceFiles,
        images: BaseImages,
        observer: Observer,
        resumes: ResumeTimes,
        greetings: Greetings,
        host_id: HostId,
        bridges: Networks,
        console_dir: Path,
        quarantine: Quarantine,
        snapshots: DiskSnapshots,
    ) -> None:
        self._hypervisor = hypervisor
        self._files = files
        self._images = images
        self._observer = observer
        self._resumes = resumes
        self._greetings = greetings
        self._host_id = host_id
        self._bridges = bridges
        self._console_dir = console_dir
        self._quarantine = quarantine
        self._snapshots = snapshots

    async def run(self, request: RunStepRequest, job: Job) -> StepOutput:
        """Raises what the work raises; STALE_EPOCH when the host runs a newer copy than the order is for."""
        work = request.WhichOneof("work") or ""
        await self._refuse_stale(request.key)
        do = request.key.direction == StepKey.DIRECTION_DO
        act = (self._do if do else self._undo)[work]
        output = await act(request, job)
        output.observed.CopyFrom(await self._observer.one(InstanceId(request.key.instance_id)))
        return output

    async def _refuse_stale(self, key: StepKey) -> None:
        view = await self._hypervisor.view(InstanceId(key.instance_id))
        if view is not None and view.epoch > key.epoch:
            raise RemudaError(
                Reason.STALE_EPOCH,
                f"this host has the copy of epoch {view.epoch}; the order is for epoch {key.epoch}",
                metadata={"epoch": str(view.epoch)},
            )

    # Launch ---------------------------------------------------------------------------------

    async def _ensure_base_image(self, request: RunStepRequest, job: Job) -> StepOutput:
        wanted = request.ensure_base_image
        await _unless_stopped(
            job,
            self._images.ensure(
                pool=wanted.pool,
                image_id=wanted.image_id,
                manifest_digest=wanted.manifest_digest,
                grant=wanted.grant,
                operation=OperationId(request.key.operation_id),
                on_progress=job.report,
            ),
        )
        return StepOutput()

    async def _leave_base_image(self, request: RunStepRequest, _: Job) -> StepOutput:
        """The cache is shared by all instances: the base stays, but is not kept for this one any more."""
        self._images.laid(OperationId(request.key.operation_id))
        return StepOutput()

    async def _prepare_disks(self, request: RunStepRequest, job: Job) -> StepOutput:
        spec = request.prepare_disks.spec
        self._plug(spec)
        await self._confirm(request.key)
        # Asked for once more: this agent may have been restarted since, and the base have made room.
        grant = request.prepare_disks.grant if request.prepare_disks.HasField("grant") else None
        await self._create(request.key, spec, "owner", grant, job)
        return StepOutput()

    async def _create(
        self, key: StepKey, spec: DomainSpec, role: str, grant: SignedGrant | None, job: Job
    ) -> None:
        """The instance's files, on a base that stays until its disk lies on it."""
        operation = OperationId(key.operation_id)
        try:
            if grant is not None:
                fetching = self._images.ensure(
                    pool=spec.pool,
                    image_id=spec.image_id,
                    manifest_digest=spec.manifest_digest,
                    grant=grant,
                    operation=operation,
                    on_progress=job.report,
                )
                await _unless_stopped(job, fetching)
            await self._files.create(spec, self._owner(key, role))
        finally:
            self._images.laid(operation)

    async def _unprepare_disks(self, request: RunStepRequest, _: Job) -> StepOutput:
        await self._forget_domain(request.key)
        await self._files.remove(request.prepare_disks.spec.pool, self._owner(request.key, "owner"))
        await self._removed(request.key)
        return StepOutput()

    async def _define_domain(self, request: RunStepRequest, _: Job) -> StepOutput:
        spec = request.define_domain.spec
        paths = self._files.paths(spec.pool, InstanceId(spec.instance_id))
        view = await self._hypervisor.define(self._description(request.key, spec, paths))
        return StepOutput(machine_type=view.machine_type)

    async def _undefine_domain(self, request: RunStepRequest, _: Job) -> StepOutput:
        await self._forget_domain(request.key)
        return StepOutput()

    # Power ----------------------------------------------------------------------------------

    async def _start_domain(self, request: RunStepRequest, _: Job) -> StepOutput:
        """A paused guest goes on; one that is still on its way here must not."""
        instance = InstanceId(request.key.instance_id)
        self._quarantine.refuse_released(instance, Epoch(request.key.epoch))
        view = await self._hypervisor.view(instance)
        if view is not None and view.power_state == "RUNNING":
            return StepOutput()  # whoever set it running, it is not this order that does
        if view is not None:
            self._quarantine.require(instance, view.epoch)
        await self._hypervisor.start(instance)
        view = await self._hypervisor.view(instance)
        if view is not None and view.power_state == "PAUSED":
            if view.job == "MIGRATION_IN":
                raise RemudaError(Reason.STEP_FAILED, f"instance {instance} is still being received")
            await self._hypervisor.resume(instance)
        return StepOutput()

    async def _destroy_domain(self, request: RunStepRequest, _: Job) -> StepOutput:
        await self._hypervisor.destroy(InstanceId(request.key.instance_id))
        return StepOutput()

    async def _stop_domain(self, request: RunStepRequest, job: Job) -> StepOutput:
        """ACPI power button, pressed again while nothing happens; off when the grace time is over."""
        instance = InstanceId(request.key.instance_id)
        grace = request.stop_domain.grace.ToTimedelta().total_seconds()
        view = await self._hypervisor.view(instance)
        if view is None or not view.active:
            return StepOutput()
        if request.stop_domain.force or view.power_state != "RUNNING":
            await self._hypervisor.destroy(instance)
            return StepOutput(forced=True)
        end = time.monotonic() + grace
        next_press = 0.0
        while time.monotonic() < end:
            if job.stop.is_set():
                raise RemudaError(Reason.CANCELLED, "stopping was cancelled; the guest may still shut down")
            if time.monotonic() >= next_press:
                next_press = time.monotonic() + PRESS_AGAIN_SECONDS
                await self._hypervisor.shutdown(instance)
            await asyncio.sleep(POLL_SECONDS)
            view = await self._hypervisor.view(instance)
            if view is None or not view.active:
                return StepOutput()
        await self._hypervisor.destroy(instance)
        return StepOutput(forced=True)

    async def _pause_domain(self, request: RunStepRequest, _: Job) -> StepOutput:
        """Only the copy of this epoch: another one here is not the one that was decided about."""
        instance = InstanceId(request.key.instance_id)

        async def runs() -> bool:
            view = await self._hypervisor.view(instance)
            if view is None or view.epoch != request.key.epoch or view.power_state != "RUNNING":
                return False
            if view.postcopy:
                raise RemudaError(Reason.HYPERVISOR_ERROR, f"memory of {instance} is split over two hosts")
            return True

        if await runs():
            try:
                await self._hypervisor.pause(instance)
            except RemudaError:
                # It may have gone off, or have been moved away, just now.
                if await runs():
                    raise
        return StepOutput()

    # Removal --------------------------------------------------------------------------------

    async def _remove_instance(self, request: RunStepRequest, _: Job) -> StepOutput:
        await self._forget_domain(request.key)
        if not request.remove_instance.keep_shared_files:
            await self._files.delete(request.remove_instance.pool, self._owner(request.key, "owner"))
        await self._removed(request.key)
        return StepOutput()

    # Migration ------------------------------------------------------------------------------

    async def _prepare_incoming(self, request: RunStepRequest, job: Job) -> StepOutput:
        work = request.prepare_incoming
        output = StepOutput(bridges=self._plug(work.spec))
        await self._confirm(request.key)
        await asyncio.to_thread(self._console_dir.mkdir, parents=True, exist_ok=True)
        if work.shared_disks:
            # The files are there and the source still writes them: owner.json changes hands with ownership.
            return output
        await self._create(request.key, work.spec, "incoming", work.grant, job)
        return output

    async def _unprepare_incoming(self, request: RunStepRequest, _: Job) -> StepOutput:
        """Never stops a guest that has arrived: whoever undoes this has decided on an older look."""
        work = request.prepare_incoming
        view = await self._hypervisor.view(InstanceId(request.key.instance_id))
        if view is not None and view.power_state == "RUNNING":
            raise RemudaError(
                Reason.MIGRATION_FAILED, "the guest has arrived here and runs: nothing is removed"
            )
        await self._forget_domain(request.key)
        if not work.shared_disks:
            await self._files.remove(work.spec.pool, self._owner(request.key, "incoming"))
        await self._removed(request.key)
        return StepOutput()

    async def _finish_incoming(self, request: RunStepRequest, _: Job) -> StepOutput:
        """The directory ours, the persistent definition proven, the run state enforced.

        The directory first: it is ours by record whatever became of the guest since. Where neither is left,
        the guest was deleted or has moved on.
        """
        instance = InstanceId(request.key.instance_id)
        pool = request.finish_incoming.pool
        view = await self._hypervisor.view(instance)
        gone = RemudaError(Reason.GUEST_STOPPED, f"instance {instance} is not here any more")
        if view is None and await self._files.owner(pool, instance) is None:
            raise gone
        await self._files.take_over(pool, self._owner(request.key, "owner"))
        if view is None:
            raise gone
        if not view.active:
            return StepOutput()  # the guest has ended since it arrived: what is observed says how
        if not view.persistent or view.definition_epoch != request.key.epoch:
            raise RemudaError(
                Reason.HYPERVISOR_ERROR,
                f"the persistent definition of {instance} is not the one of epoch {request.key.epoch}",
            )
        if request.finish_incoming.paused:
            await self._hypervisor.pause(instance)
        else:
            if view.power_state != "RUNNING":
                self._quarantine.require(instance, view.epoch)
            await self._hypervisor.resume(instance)
        measured = await self._hypervisor.completed_stats(instance)
        output = StepOutput(downtime_ms=measured.downtime_ms if measured else None)
        if (resumed := self._resumes.last(instance)) is not None:
            output.resume_time.FromDatetime(resumed)
        if not request.finish_incoming.paused:
            output.guest_agent_answered = await self._greetings.answered(instance)
        return output

    async def _release_source(self, request: RunStepRequest, _: Job) -> StepOutput:
        """A copy that runs is never released. One that is paused without a job was left so by a network that
        was cut at the switch-over: the record says that the guest goes on elsewhere, so it holds nothing.
        """
        work = request.release_source
        instance = InstanceId(request.key.instance_id)
        view = await self._hypervisor.view(instance)
        if view is not None and view.active:
            if view.power_state == "RUNNING" or view.job != "NONE" or view.postcopy:
                raise RemudaError(
                    Reason.HYPERVISOR_ERROR,
                    f"the copy here is still {view.power_state.lower()} ({view.reason}): it is not released",
                )
            await self._hypervisor.destroy(instance)
        await self._hypervisor.undefine(instance)
        if not work.shared_disks:
            await self._files.remove(work.pool, self._owner(request.key, "owner"))
        await self._quarantine.given_up(instance, Epoch(request.key.epoch))
        return StepOutput()

    async def _nothing(self, _: RunStepRequest, __: Job) -> StepOutput:
        return StepOutput()

    # ----------------------------------------------------------------------------------------

    async def _confirm(self, key: StepKey) -> None:
        """By the order to make it. Raises STALE_EPOCH when this host has given that copy up."""
        await self._quarantine.ordered(InstanceId(key.instance_id), Epoch(key.epoch))

    async def _removed(self, key: StepKey) -> None:
        await self._quarantine.removed(InstanceId(key.instance_id), Epoch(key.epoch))

    async def _forget_domain(self, key: StepKey) -> None:
        """Destroys and undefines the copy of this epoch; a copy in post-copy holds half a guest and stays."""
        instance = InstanceId(key.instance_id)
        view = await self._hypervisor.view(instance)
        if view is None:
            return
        if view.postcopy:
            raise RemudaError(Reason.HYPERVISOR_ERROR, f"memory of {instance} is split over two hosts")
        await self._hypervisor.destroy(instance)
        await self._hypervisor.undefine(instance)

    def _owner(self, key: StepKey, role: str) -> Owner:
        return Owner(
            instance_id=InstanceId(key.instance_id),
            host_id=self._host_id,
            epoch=Epoch(key.epoch),
            operation_id=OperationId(key.operation_id),
            role="owner" if role == "owner" else "incoming",
        )

    def _plug(self, spec: DomainSpec) -> dict[str, str]:
        """The bridge of every physical network of the guest's ports."""
        return self._bridges.bridges(sorted({nic.physical_network for nic in spec.nics}))

    def _description(self, key: StepKey, spec: DomainSpec, paths: InstancePaths) -> DomainDescription:
        bridges = self._plug(spec)
        return DomainDescription(
            instance_id=InstanceId(spec.instance_id),
            title=spec.instance_name,
            epoch=Epoch(key.epoch),
            operation_id=OperationId(key.operation_id),
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            disk=paths.disk,
            config_drive=paths.config_drive,
            console=self._console_dir / f"{spec.instance_id}.console",
            nics=tuple(
                DomainNic(mac_address=nic.mac_address, bridge=bridges[nic.physical_network], mtu=nic.mtu)
                for nic in spec.nics
            ),
            machine_type=spec.machine_type,
        )

    @property
    def _do(self) -> Mapping[str, "Act"]:
        return {
            "ensure_base_image": self._ensure_base_image,
            "prepare_disks": self._prepare_disks,
            "define_domain": self._define_domain,
            "start_domain": self._start_domain,
            "stop_domain": self._stop_domain,
            "pause_domain": self._pause_domain,
            "remove_instance": self._remove_instance,
            "prepare_incoming": self._prepare_incoming,
            "finish_incoming": self._finish_incoming,
            "release_source": self._release_source,
            "snapshot_disk": self._snapshots.take,
        }

    @property
    def _undo(self) -> Mapping[str, "Act"]:
        return {
            "ensure_base_image": self._leave_base_image,
            "prepare_disks": self._unprepare_disks,
            "define_domain": self._undefine_domain,
            "start_domain": self._destroy_domain,
            "stop_domain": self._nothing,
            "pause_domain": self._nothing,
            "remove_instance": self._nothing,
            "prepare_incoming": self._unprepare_incoming,
            "finish_incoming": self._nothing,
            "release_source": self._nothing,
            "snapshot_disk": self._snapshots.undo,
        }


Act = Callable[[RunStepRequest, Job], Awaitable[StepOutput]]


async def _unless_stopped(job: Job, work: Coroutine[Any, Any, object]) -> None:
    """Long work that is safe to leave: what has been fetched is kept. Raises CANCELLED when asked to stop."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(job.stop.wait())
    try:
        done, _ = await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working not in done:
            raise RemudaError(Reason.CANCELLED, f"step {job.name[1]} was asked to stop")
        working.result()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)

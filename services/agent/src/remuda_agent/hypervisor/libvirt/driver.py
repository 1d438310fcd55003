"""The libvirt driver: QEMU guests of this host through its local libvirtd."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import libvirt
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, InstanceId, OperationId

from remuda_agent.hypervisor.backups import BackupRequest, Guard
from remuda_agent.hypervisor.facts import CpuVerdict, GuestFacts
from remuda_agent.hypervisor.fanout import Fanout
from remuda_agent.hypervisor.libvirt import backups, domain_calls, domain_xml, guarding, preflight, silence
from remuda_agent.hypervisor.libvirt.connection import Connection, failed
from remuda_agent.hypervisor.libvirt.domain_xml import Platform, Stamp
from remuda_agent.hypervisor.libvirt.host_facts import HostFacts, parse_capabilities
from remuda_agent.hypervisor.libvirt.peer import Peers
from remuda_agent.hypervisor.libvirt.states import translate_event
from remuda_agent.hypervisor.model import (
    CompletedMigration,
    DomainDescription,
    DomainView,
    EventKind,
    HypervisorCapabilities,
    HypervisorEvent,
    MigrationJobStats,
    MigrationRequest,
    hypervisor_error,
)
from remuda_agent.probe.domain_type import DomainType

MEASURING_POLL_SECONDS = 0.2
MEASURING_SLACK_SECONDS = 5.0


@asynccontextmanager
async def open_libvirt(uri: str, domain_type: DomainType) -> AsyncIterator[LibvirtHypervisor]:
    """The driver, connected; closed at the end of the block. Raises RemudaError without libvirtd."""
    driver = LibvirtHypervisor(uri, domain_type)
    try:
        async with driver.connection.running():
            yield driver
    finally:
        driver.fanout.close()


class LibvirtHypervisor:
    """Made by `open_libvirt`. ``uri`` is the local libvirtd's, whatever hosts migrations go to."""

    def __init__(self, uri: str, domain_type: DomainType) -> None:
        self._uri = uri
        self._domain_type = domain_type
        self._facts: HostFacts | None = None
        self._peers = Peers()
        self._event_loop = asyncio.get_running_loop()
        self.fanout = Fanout()
        self.connection = Connection(uri, setup=self._register, restored=self.fanout.relist)

    async def capabilities(self) -> HypervisorCapabilities:
        def ask(connection: Any) -> tuple[list[Any], int, int]:
            return connection.getInfo(), connection.getLibVersion(), connection.getVersion()

        facts = await self._known()
        info, libvirt_version, qemu_version = await self.connection.call(ask, repeat=True)
        return HypervisorCapabilities(
            driver="libvirt",
            vcpus=int(info[2]),
            memory_mib=int(info[1]),
            domain_type=self._domain_type.name,
            domain_type_reason=self._domain_type.reason,
            architecture=facts.architecture,
            cpu_model=self._platform(facts).cpu_model,
            libvirt_version=libvirt_version,
            qemu_version=qemu_version,
            machine_types=facts.machine_types,
            default_machine_type=facts.default_machine_type,
        )

    async def define(self, description: DomainDescription) -> DomainView:
        xml = domain_xml.build(description, self._platform(await self._known()))
        return await self.connection.call(lambda c: domain_calls.define(c, description.instance_id, xml))

    async def undefine(self, instance_id: InstanceId) -> None:
        await self.connection.call(lambda c: domain_calls.undefine(c, instance_id), repeat=True)

    async def start(self, instance_id: InstanceId) -> None:
        await self.connection.call(lambda c: domain_calls.start(c, instance_id))

    async def shutdown(self, instance_id: InstanceId) -> None:
        await self.connection.call(lambda c: domain_calls.shutdown(c, instance_id))

    async def destroy(self, instance_id: InstanceId) -> None:
        await self.connection.call(lambda c: domain_calls.destroy(c, instance_id), repeat=True)

    async def pause(self, instance_id: InstanceId) -> None:
        await self.connection.call(lambda c: domain_calls.pause(c, instance_id))

    async def resume(self, instance_id: InstanceId) -> None:
        await self.connection.call(lambda c: domain_calls.resume(c, instance_id))

    async def view(self, instance_id: InstanceId) -> DomainView | None:
        return await self.connection.call(lambda c: domain_calls.view(c, instance_id), repeat=True)

    async def domains(self) -> list[DomainView]:
        return await self.connection.call(domain_calls.views, repeat=True)

    async def set_epoch(self, instance_id: InstanceId, *, epoch: Epoch, operation_id: OperationId) -> None:
        stamp = Stamp(instance_id=instance_id, epoch=epoch, operation_id=operation_id)
        await self.connection.call(lambda c: domain_calls.set_stamp(c, stamp), repeat=True)

    async def migrate(
        self, request: MigrationRequest, *, begun: asyncio.Event | None = None
    ) -> CompletedMigration:
        try:
            await self.connection.call_long(lambda c: domain_calls.migrate(c, request), begun=begun)
        except libvirt.libvirtError as error:
            raise await self._why(request.instance_id, error) from error
        # Lost with libvirtd's memory when that restarted just now: unknown, not a failure.
        return await self.completed_stats(request.instance_id) or CompletedMigration()

    async def job_stats(self, instance_id: InstanceId) -> MigrationJobStats | None:
        return await self.connection.call(lambda c: domain_calls.running_stats(c, instance_id), repeat=True)

    async def completed_stats(self, instance_id: InstanceId) -> CompletedMigration | None:
        return await self.connection.call(lambda c: domain_calls.completed_stats(c, instance_id), repeat=True)

    async def abort_job(self, instance_id: InstanceId) -> None:
        await self.connection.call(lambda c: domain_calls.abort_job(c, instance_id))

    async def bound_silence(self, instance_id: InstanceId, *, peer: str) -> None:
        def bound() -> None:
            pid = silence.qemu_of(instance_id)
            if pid is not None:
                silence.bound(pid, peer)

        try:
            # Not through libvirt's threads: those may all be waiting for the very connection that is dead.
            await asyncio.to_thread(bound)
        except OSError as error:
            raise hypervisor_error(
                f"connections of {instance_id} to {peer} are not bounded: {error}"
            ) from error

    async def end_missed_call(self, *, peer: str) -> None:
        try:
            await asyncio.to_thread(lambda: [silence.sever(pid, peer) for pid in silence.daemons()])
        except OSError as error:
            raise hypervisor_error(f"libvirt's connection to {peer} is not broken: {error}") from error

    async def set_bandwidth(self, instance_id: InstanceId, *, mib_per_second: int, post_copy: bool) -> None:
        await self.connection.call(
            lambda c: domain_calls.set_bandwidth(c, instance_id, mib_per_second, post_copy), repeat=True
        )

    async def set_max_downtime(self, instance_id: InstanceId, *, milliseconds: int) -> int:
        return await self.connection.call(
            lambda c: domain_calls.set_max_downtime(c, instance_id, milliseconds), repeat=True
        )

    async def start_post_copy(self, instance_id: InstanceId) -> None:
        await self.connection.call(lambda c: domain_calls.start_post_copy(c, instance_id))

    async def guest_agent_ping(self, instance_id: InstanceId, *, timeout: float) -> bool:
        seconds = max(1, math.ceil(timeout))
        return await self.connection.call(lambda c: domain_calls.ping_agent(c, instance_id, seconds))

    async def describe_guest(self, instance_id: InstanceId) -> GuestFacts:
        return await self.connection.call(lambda c: preflight.describe(c, instance_id), repeat=True)

    async def compare_cpu(self, guest: GuestFacts) -> CpuVerdict:
        host, domain_type = await self._known(), self._domain_type.name
        return await self.connection.call(
            lambda c: preflight.compare_cpu(c, guest, host, domain_type=domain_type), repeat=True
        )

    async def open_peer(self, hostname: str, *, transport: str, patience: float) -> str:
        return await self._peers.hostname(hostname, transport=transport, patience=patience)

    async def measure_dirty_rate(self, instance_id: InstanceId, *, seconds: int) -> int:
        await self.connection.call(lambda c: preflight.start_measuring(c, instance_id, seconds))
        end = self._event_loop.time() + seconds + MEASURING_SLACK_SECONDS
        while self._event_loop.time() < end:
            await asyncio.sleep(MEASURING_POLL_SECONDS)
            rate = await self.connection.call(lambda c: preflight.measured(c, instance_id), repeat=True)
            if rate is not None:
                return rate
        raise hypervisor_error(f"QEMU of {instance_id} has not measured its dirty rate in {seconds} s")

    def guarded(self, instance_id: InstanceId, *, limit: float) -> AbstractAsyncContextManager[Guard]:
        async def undo(resume: bool) -> None:
            await self.connection.call(lambda c: backups.undo(c, instance_id, resume=resume))

        return guarding.guarded(self._uri, instance_id, limit=limit, undo=undo)

    async def begin_backup(self, request: BackupRequest) -> None:
        await self.connection.call(lambda c: backups.begin(c, request))

    async def end_backup(self, instance_id: InstanceId) -> None:
        await self.connection.call(lambda c: backups.end(c, instance_id), repeat=True)

    async def checkpoints(self, instance_id: InstanceId) -> list[str]:
        return await self.connection.call(lambda c: backups.checkpoints(c, instance_id), repeat=True)

    async def delete_checkpoint(self, instance_id: InstanceId, name: str) -> None:
        await self.connection.call(lambda c: backups.delete_checkpoint(c, instance_id, name), repeat=True)

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[HypervisorEvent]]:
        return self.fanout.subscribe()

    async def _why(self, instance_id: InstanceId, error: libvirt.libvirtError) -> RemudaError:
        """The reason of a migration that failed, told apart as far as this host can see."""
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_ABORTED:
            return RemudaError(Reason.CANCELLED, str(error))
        try:
            seen = await self.view(instance_id)
        except RemudaError:
            seen = None
        if seen is not None and not seen.active and seen.reason == "shutdown":
            return RemudaError(Reason.GUEST_STOPPED, "the guest powered itself off while it was migrated")
        return failed(error)

    async def _known(self) -> HostFacts:
        if self._facts is None:
            text = await self.connection.call(lambda c: c.getCapabilities(), repeat=True)
            self._facts = parse_capabilities(text)
        return self._facts

    def _platform(self, facts: HostFacts) -> Platform:
        return Platform(
            domain_type=self._domain_type.name, architecture=facts.architecture, emulator=facts.emulator
        )

    def _register(self, connection: Any) -> None:
        """In a thread, with every new connection; the callbacks run in libvirt's event thread."""
        # libvirtd may have come back with another QEMU.
        self._facts = None

        def lifecycle(_connection: object, domain: Any, event: int, detail: int, _opaque: object) -> None:
            kind, word = translate_event(event, detail)
            self._post(kind, domain.UUIDString(), word)

        def job_completed(_connection: object, domain: Any, _stats: object, _opaque: object) -> None:
            self._post(EventKind.JOB_ENDED, domain.UUIDString(), "")

        def iteration(_connection: object, domain: Any, number: int, _opaque: object) -> None:
            self._post(EventKind.MIGRATION_ITERATION, domain.UUIDString(), str(number))

        for event, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, job_completed),
            (libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION, iteration),
        ):
            connection.domainEventRegisterAny(None, event, callback, None)

    def _post(self, kind: EventKind, uuid: str, detail: str) -> None:
        event = HypervisorEvent(
            kind=kind,
            instance_id=None if kind is EventKind.RELIST else InstanceId(uuid),
            detail=detail,
            time=datetime.now(UTC),
        )
        try:
            self._event_loop.call_soon_threadsafe(self.fanout.put, event)
        except RuntimeError:
            return  # the agent's loop has ended; its events with it

"""Asks both hosts of a pair, all at once and each within a bound. What it leaves behind, it takes away."""

import asyncio
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Hashable
from contextlib import aclosing
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TypeVar

import structlog
from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1 import probe_pb2 as pb
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, InstanceId

from remuda_scheduler.preflight.facts import HostSide, NoAnswer, Probe, Probes, Reach, SharedFile
from remuda_scheduler.preflight.naming import leads_astray
from remuda_scheduler.preflight.ports import ProbeAgents
from remuda_scheduler.preflight.reuse import Recent

T = TypeVar("T")
_log = structlog.get_logger(__name__)

ANSWER_SECONDS = 10.0
"""For an agent that only has to look. libvirt may be slow on a loaded host."""
CONNECT_SECONDS = 3
"""For one host to reach the other: what takes longer is no link to migrate over."""
LOOK_FOR_FILE_SECONDS = 4.0
"""A network file system may show a new file late: attribute caches live for 3 s by default."""
MEASURE_SECONDS = 1

_NONCE_BYTES = 32


class Prober:
    """Lives as long as one leadership."""

    def __init__(self, agents: ProbeAgents, *, recent: Recent | None = None) -> None:
        self._agents = agents
        self._recent = Recent() if recent is None else recent
        self._cleaning: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Waits for what is still being taken away, each bounded."""
        await asyncio.gather(*self._cleaning, return_exceptions=True)

    async def guest(self, source: HostSide, instance: InstanceId) -> Probe[pb.GuestFacts]:
        """Never used again: what is in a guest may change at any time."""
        request = pb.DescribeGuestRequest(instance_id=instance)

        async def ask() -> pb.GuestFacts:
            answer = await self._agents.describe_guest(source.placement.id, request, ANSWER_SECONDS)
            return answer.guest

        return await _timed(ask(), ANSWER_SECONDS, source)

    async def dirty_rate(self, source: HostSide, instance: InstanceId) -> Probe[int]:
        """Bytes per second, measured now."""
        request = pb.MeasureDirtyRateRequest(instance_id=instance, period=Duration(seconds=MEASURE_SECONDS))
        limit = MEASURE_SECONDS + ANSWER_SECONDS

        async def ask() -> int:
            answer = await self._agents.measure_dirty_rate(source.placement.id, request, limit)
            return answer.dirty_bytes_per_second

        return await _timed(ask(), limit, source)

    async def pair(
        self,
        *,
        source: HostSide,
        target: HostSide,
        guest: Probe[pb.GuestFacts],
        dirty_rate: Probe[int] | None,
        assessment: pb.AssessGuestRequest,
        try_storage: bool,
        fresh: bool,
    ) -> Probes:
        """`assessment`: with everything but the guest's facts. `fresh`: nothing is used again."""
        asked = _Pair(self._agents, source, target)
        transport = target.placement.migration_transport or "tls"
        sides = (source.placement.id, target.placement.id)

        async def way_back() -> Probe[pb.AssessGuestResponse]:
            key = (*sides, "way back", _digest(guest))
            return await self._once(key, fresh, _could_run, lambda: asked.assess(source, guest, assessment))

        async def names(here: HostSide, there: HostSide) -> Probe[pb.ResolveHostResponse]:
            key = (*sides, "name", here.name, there.name, there.migration_address)
            return await self._once(
                key, fresh, lambda answer: not leads_astray(answer, there), lambda: asked.resolve(here, there)
            )

        async def reach() -> Probe[Reach]:
            key = (*sides, "reach", target.migration_address)
            return await self._once(key, fresh, _heard, asked.reach)

        async def libvirt() -> Probe[pb.OpenLibvirtResponse]:
            key = (*sides, "libvirt", target.name, transport)
            return await self._once(key, fresh, _opened, lambda: asked.open_libvirt(transport))

        async def shared_file() -> Probe[SharedFile] | None:
            return await self._shared_file(source, target, assessment.pool) if try_storage else None

        # The target is asked every time, for it also says what is free in its pool now.
        async with asyncio.TaskGroup() as group:
            assessed = group.create_task(asked.assess(target, guest, assessment))
            taken_back = group.create_task(way_back())
            target_by_source = group.create_task(names(source, target))
            source_by_target = group.create_task(names(target, source))
            reached = group.create_task(reach())
            opened = group.create_task(libvirt())
            seen_by_both = group.create_task(shared_file())
        return Probes(
            guest=guest,
            target=assessed.result(),
            source=taken_back.result(),
            target_by_source=target_by_source.result(),
            source_by_target=source_by_target.result(),
            reach=reached.result(),
            libvirt=opened.result(),
            shared_file=seen_by_both.result(),
            dirty_rate=dirty_rate,
        )

    async def _once(
        self,
        key: Hashable,
        fresh: bool,
        holds: Callable[[Probe[T]], bool],
        ask: Callable[[], Awaitable[Probe[T]]],
    ) -> Probe[T]:
        known = None if fresh else self._recent.find(key)
        if known is not None:
            return known
        probe = await ask()
        if not isinstance(probe.found, NoAnswer) and holds(probe):
            self._recent.keep(key, probe)
        else:
            self._recent.forget(key)
        return probe

    async def _shared_file(self, source: HostSide, target: HostSide, pool: str) -> Probe[SharedFile]:
        """Written by the target, so that it is also known that the target can write there."""
        name, content = str(uuid.uuid4()), secrets.token_bytes(_NONCE_BYTES)
        limit = 2 * ANSWER_SECONDS + LOOK_FOR_FILE_SECONDS

        async def ask() -> SharedFile:
            write = pb.WriteNonceRequest(pool=pool, name=name, content=content)
            read = pb.ReadNonceRequest(pool=pool, name=name)
            try:
                written = await self._agents.write_nonce(target.placement.id, write, ANSWER_SECONDS)
            except RemudaError as error:
                if error.reason is not Reason.DISK_FULL:
                    raise
                # An answer, and not one that asking again would change.
                return SharedFile(full=error.message)
            else:
                seen = await self._agents.read_nonce(source.placement.id, read, LOOK_FOR_FILE_SECONDS)
            finally:
                # Also when the answer was lost, or nobody waits for us any more.
                await self._take_away(target.placement.id, pool, name)
            return SharedFile(pool_uid=written.pool_uid, read=seen.content == content)

        return await _timed(ask(), limit, source, target)

    async def _take_away(self, host: HostId, pool: str, name: str) -> None:
        async def remove() -> None:
            try:
                request = pb.RemoveNonceRequest(pool=pool, name=name)
                await self._agents.remove_nonce(host, request, ANSWER_SECONDS)
            except RemudaError as error:
                # Its agent sweeps such files when it starts.
                _log.warning("a probe's file may be left", host=host, pool=pool, error=str(error))

        task = asyncio.create_task(remove(), name=f"probe's file on {host}")
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)
        await asyncio.shield(task)


class _Pair:
    """The questions about one pair."""

    def __init__(self, agents: ProbeAgents, source: HostSide, target: HostSide) -> None:
        self._agents = agents
        self._source = source
        self._target = target

    async def assess(
        self, host: HostSide, guest: Probe[pb.GuestFacts], assessment: pb.AssessGuestRequest
    ) -> Probe[pb.AssessGuestResponse]:
        if isinstance(guest.found, NoAnswer):
            words = f"not asked, because the guest is not known: {guest.found.words}"
            return Probe(found=NoAnswer(words=words), seen_at=guest.seen_at)
        request = pb.AssessGuestRequest()
        request.CopyFrom(assessment)
        request.guest.CopyFrom(guest.found)
        ask = self._agents.assess_guest(host.placement.id, request, ANSWER_SECONDS)
        return await _timed(ask, ANSWER_SECONDS, host)

    async def resolve(self, here: HostSide, there: HostSide) -> Probe[pb.ResolveHostResponse]:
        request = pb.ResolveHostRequest(hostname=there.name)
        ask = self._agents.resolve_host(here.placement.id, request, ANSWER_SECONDS)
        return await _timed(ask, ANSWER_SECONDS, here)

    async def open_libvirt(self, transport: str) -> Probe[pb.OpenLibvirtResponse]:
        request = pb.OpenLibvirtRequest(
            hostname=self._target.name, transport=transport, patience=Duration(seconds=CONNECT_SECONDS)
        )
        limit = CONNECT_SECONDS + ANSWER_SECONDS
        return await _timed(
            self._agents.open_libvirt(self._source.placement.id, request, limit), limit, self._source
        )

    async def reach(self) -> Probe[Reach]:
        return await _timed(self._reach(), 2 * CONNECT_SECONDS + ANSWER_SECONDS, self._source, self._target)

    async def _reach(self) -> Reach:
        nonce, patience = secrets.token_bytes(_NONCE_BYTES), Duration(seconds=2 * CONNECT_SECONDS)
        limit = 2 * CONNECT_SECONDS + ANSWER_SECONDS
        listening = self._agents.listen(
            self._target.placement.id, pb.ListenRequest(nonce=nonce, patience=patience), limit
        )
        async with aclosing(listening):
            opened = await anext(listening, None)
            if opened is None:
                raise RemudaError(Reason.HYPERVISOR_ERROR, f"{self._target.name} opened no port to listen at")
            address = self._address(opened)
            connect = pb.ConnectRequest(
                address=address,
                port=opened.port,
                nonce=nonce,
                patience=Duration(seconds=CONNECT_SECONDS),
            )
            tried = await self._agents.connect(
                self._source.placement.id, connect, CONNECT_SECONDS + ANSWER_SECONDS
            )
            if not tried.connected:
                error = tried.error or "not connected"
                return Reach(address=address, port=opened.port, heard=False, error=error)
            last = await anext(listening, None)
            heard = last is not None and last.heard
            return Reach(address=address, port=opened.port, heard=heard)

    def _address(self, opened: pb.ListenResponse) -> str:
        """Where migrations would go to; one that listens everywhere does not say where."""
        if opened.address and not _everywhere(opened.address):
            return opened.address
        return self._target.migration_address or self._target.name


async def _timed(ask: Awaitable[T], seconds: float, *hosts: HostSide) -> Probe[T]:
    """Silence and refusals become words. Raises nothing that an agent could cause."""
    began, seen_at = time.monotonic(), datetime.now(UTC)
    found: T | NoAnswer
    try:
        # A second more than the rpc has: it ends by itself with better words.
        async with asyncio.timeout(seconds + 1.0):
            found = await ask
    except RemudaError as error:
        found = NoAnswer(words=_named(f"{error.reason}: {error.message}", hosts))
    except TimeoutError:
        who = " and ".join(host.name for host in hosts)
        found = NoAnswer(words=f"no answer from {who} within {seconds:.0f} s")
    took = round((time.monotonic() - began) * 1000)
    return Probe(found=found, seen_at=seen_at, duration_ms=took)


def _named(words: str, hosts: tuple[HostSide, ...]) -> str:
    """Operators know hosts by name."""
    for host in hosts:
        words = words.replace(host.placement.id, host.name)
    return words


def _digest(guest: Probe[pb.GuestFacts]) -> bytes:
    """What the source's answer about taking it back depends on."""
    if isinstance(guest.found, NoAnswer):
        return b""
    found = guest.found
    return repr((found.cpu_xml, found.machine_type, found.domain_type, found.architecture)).encode()


def _could_run(probe: Probe[pb.AssessGuestResponse]) -> bool:
    seen = probe.found
    able = (pb.AssessGuestResponse.CPU_IDENTICAL, pb.AssessGuestResponse.CPU_SUPERSET)
    return not isinstance(seen, NoAnswer) and seen.cpu in able


def _heard(probe: Probe[Reach]) -> bool:
    return not isinstance(probe.found, NoAnswer) and probe.found.heard


def _opened(probe: Probe[pb.OpenLibvirtResponse]) -> bool:
    return not isinstance(probe.found, NoAnswer) and probe.found.hostname != "" and not probe.found.error


def _everywhere(address: str) -> bool:
    try:
        return ip_address(address).is_unspecified
    except ValueError:
        return False

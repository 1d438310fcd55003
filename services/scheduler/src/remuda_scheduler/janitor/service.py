"""Lists a host, judges what was found, has removed what may be removed.

Why listing first and reading the store afterwards is safe: an operation journals its reservation, and holds
its instance's claim, before it orders anything of a host. So whatever was listed belongs to a record, an open
operation or a debt that was in the store before the listing, unless that operation has ended since: its last
transaction has then changed the record, or left a debt, and this is what is read. The other way round, a move
that begins between reading and listing would be taken for a left-over. What begins after both makes its
directory anew, with another owner.json, and the host removes only what is still as it was listed.
"""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import structlog
from remuda.agent.v1.agent_pb2 import FoundDirectory, FoundFile, SurveyResponse, SweepTarget
from remuda.compute.v1.host_pb2 import SweepHostResponse, SweepItem
from remuda.compute.v1.instance_pb2 import Instance
from remuda_core.errors import RemudaError, not_found
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.ids import HostId, InstanceId
from remuda_core.names import host_name

from remuda_scheduler.engine.fencing import FencedAgents
from remuda_scheduler.janitor.facts import read_known
from remuda_scheduler.janitor.judging import (
    Elsewhere,
    Fate,
    Known,
    Verdict,
    judge_directory,
    judge_domain,
    judge_file,
)

_log = structlog.get_logger(__name__)

MOST_ITEMS = 1000
MOST_COMPARED = 4
"""Instances whose disks are read in one sweep; the next sweep goes on."""
COMPARE_SECONDS = 120.0
_AT_ONCE = 8
_OFF = (Instance.POWER_STATE_SHUTOFF, Instance.POWER_STATE_CRASHED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    verdict: Verdict
    target: SweepTarget
    item: SweepItem


class Janitor:
    """For one term."""

    def __init__(self, *, etcd: Etcd, keys: Keys, agents: FencedAgents) -> None:
        self._etcd = etcd
        self._keys = keys
        self._agents = agents

    async def sweep(self, host: HostId, *, validate_only: bool, principal: str) -> SweepHostResponse:
        """Raises HOST_NOT_FOUND, HOST_UNREACHABLE, and STEP_FAILED when a pool of it cannot be listed."""
        if await self._etcd.get(self._keys.host(host)) is None:
            raise not_found(host_name(host))
        judged = await self._judge(host)
        removable = [one for one in judged if one.item.removable][:MOST_ITEMS]
        others = [one for one in judged if not one.item.removable]
        if not validate_only:
            await self._remove(host, removable, principal)
        shown = [*removable, *others][:MOST_ITEMS]
        return SweepHostResponse(items=[one.item for one in shown], left_off=len(judged) - len(shown))

    async def _judge(self, host: HostId) -> list[_Judged]:
        survey = await self._agents.survey(host)
        # After the listing: see the module's docstring.
        known = await read_known(self._etcd, self._keys, host)
        elsewhere = await self._look_elsewhere(known, _instances(survey))
        first = list(_judged(survey, known, elsewhere))
        compare = {
            InstanceId(one.target.directory.instance_id) for one in first if one.verdict.fate is Fate.COMPARE
        }
        if not compare:
            return first
        return await self._compared(survey, known, elsewhere, sorted(compare)[:MOST_COMPARED])

    async def _compared(
        self, survey: SurveyResponse, known: Known, elsewhere: Elsewhere, instances: list[InstanceId]
    ) -> list[_Judged]:
        """Judged again, with the content of these instances' disks, here and where they are on record."""
        seen = dict(elsewhere)
        for instance in instances:
            here, there = await asyncio.gather(
                self._look(known.host_id, instance, digests=True),
                self._look(known.records[instance].host_id, instance, digests=True),
            )
            seen[instance] = there
            for directory in here.directories if here else ():
                for listed in survey.directories:
                    if (listed.instance_id, listed.pool) == (directory.instance_id, directory.pool):
                        listed.CopyFrom(directory)
        return list(_judged(survey, known, seen, compared=frozenset(instances)))

    async def _look_elsewhere(self, known: Known, instances: Iterable[InstanceId]) -> Elsewhere:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def look(instance: InstanceId) -> SurveyResponse | None:
            async with turns:
                return await self._look(known.records[instance].host_id, instance)

        asked = [
            instance
            for instance in instances
            if instance in known.records
            and known.records[instance].host_id
            and instance not in known.held
            and instance not in known.owed
        ]
        answers = await asyncio.gather(*(look(instance) for instance in asked))
        return dict(zip(asked, answers, strict=True))

    async def _look(
        self, host: HostId, instance: InstanceId, *, digests: bool = False
    ) -> SurveyResponse | None:
        try:
            if digests:
                return await self._agents.survey(host, instance, digests=True, seconds=COMPARE_SECONDS)
            return await self._agents.survey(host, instance)
        except RemudaError as error:
            _log.info("cannot look at a copy on record", host=host, instance=instance, error=str(error))
            return None

    async def _remove(self, host: HostId, judged: list[_Judged], principal: str) -> None:
        if not judged:
            return
        receipts = await self._agents.sweep(host, [one.target for one in judged], principal=principal)
        for one, receipt in zip(judged, receipts, strict=True):
            one.item.removed = receipt.removed
            if not receipt.removed:
                one.item.reason = f"{one.item.reason}; not removed: {receipt.reason}"
            _log.warning(
                "swept",
                host=host,
                principal=principal,
                kind=SweepItem.Kind.Name(one.item.kind),
                path=one.item.path,
                instance=one.item.instance_id,
                removed=receipt.removed,
                reason=one.item.reason,
            )


def _instances(survey: SurveyResponse) -> list[InstanceId]:
    found = [one.instance_id for one in survey.directories] + [one.instance_id for one in survey.domains]
    return [InstanceId(instance) for instance in dict.fromkeys(found)]


def _judged(
    survey: SurveyResponse,
    known: Known,
    elsewhere: Elsewhere,
    *,
    compared: frozenset[InstanceId] = frozenset(),
) -> Iterator[_Judged]:
    """Definitions before the directories below them; what is needed is left out."""
    active = {one.instance_id for one in survey.domains if one.power_state not in _OFF}
    for domain in survey.domains:
        item = SweepItem(kind=SweepItem.KIND_DOMAIN, path=domain.instance_id, instance_id=domain.instance_id)
        yield from _one(judge_domain(domain, known, elsewhere), SweepTarget(domain=domain), item)
    for directory in survey.directories:
        verdict = judge_directory(
            directory,
            known,
            elsewhere,
            active=directory.instance_id in active,
            compared=InstanceId(directory.instance_id) in compared,
        )
        yield from _one(verdict, SweepTarget(directory=directory), _directory_item(directory))
    now = survey.time.ToNanoseconds()
    kinds = {
        FoundFile.KIND_BASE_IMAGE: SweepItem.KIND_BASE_IMAGE,
        FoundFile.KIND_TEMPORARY: SweepItem.KIND_TEMPORARY_FILE,
    }
    for file in survey.files:
        age = (now - file.modify_time.ToNanoseconds()) / 1e9
        item = SweepItem(
            kind=kinds.get(file.kind, SweepItem.KIND_FOREIGN),
            path=f"{file.pool}/{file.path}",
            size_bytes=file.allocated_bytes,
        )
        yield from _one(judge_file(file, known, age_seconds=age), SweepTarget(file=file), item)


def _one(verdict: Verdict, target: SweepTarget, item: SweepItem) -> Iterator[_Judged]:
    if verdict.fate is Fate.NEEDED:
        return
    item.reason = target.reason = verdict.reason
    item.removable = verdict.fate is Fate.REMOVABLE
    yield _Judged(verdict=verdict, target=target, item=item)


def _directory_item(directory: FoundDirectory) -> SweepItem:
    return SweepItem(
        kind=SweepItem.KIND_INSTANCE_DIRECTORY,
        path=f"{directory.pool}/instances/{directory.instance_id}",
        instance_id=directory.instance_id,
        size_bytes=sum(file.allocated_bytes for file in directory.files),
    )

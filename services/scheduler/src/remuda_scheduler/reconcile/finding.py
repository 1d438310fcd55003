"""Every copy of an instance on every host that answers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from remuda.agent.v1.agent_pb2 import SurveyResponse
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, InstanceId

from remuda_scheduler.engine.fencing import FencedAgents
from remuda_scheduler.reconcile.deciding import Copy
from remuda_scheduler.store import StoreView

_log = structlog.get_logger(__name__)

LOOK_SECONDS = 20.0
_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    copies: Sequence[Copy]
    """Of hosts that show anything, the one on record first."""
    silent: Sequence[HostId]


async def find_copies(
    agents: FencedAgents, store: StoreView, instance: InstanceId, *, on_record: str
) -> Found:
    """Asks every host that has ever attached. Raises STALE_LEADER."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def look(host: HostId) -> SurveyResponse | None:
        async with turns:
            try:
                return await agents.survey(host, instance, seconds=LOOK_SECONDS)
            except RemudaError as error:
                if error.reason is Reason.STALE_LEADER:
                    raise
                _log.warning("cannot look for copies", host=host, instance=instance, error=str(error))
                return None

    hosts = [
        HostId(entry.value.id)
        for entry in store.hosts.items()
        if store.host_status(HostId(entry.value.id)) is not None
    ]
    hosts.sort(key=lambda host: (host != on_record, host))
    answers = await asyncio.gather(*(look(host) for host in hosts))
    copies = [_copy(store, host, answer) for host, answer in zip(hosts, answers, strict=True) if answer]
    return Found(
        copies=[copy for copy in copies if copy.domain or copy.directories or copy.foreign],
        silent=[host for host, answer in zip(hosts, answers, strict=True) if answer is None],
    )


def _copy(store: StoreView, host: HostId, answer: SurveyResponse) -> Copy:
    record = store.host(host)
    return Copy(
        host_id=host,
        name=record.display_name if record is not None else host,
        domain=answer.domains[0] if answer.domains else None,
        directories=tuple(answer.directories),
        foreign=tuple(f"{file.pool}/{file.path}" for file in answer.files),
    )

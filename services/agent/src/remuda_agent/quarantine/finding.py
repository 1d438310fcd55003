"""Which copies of guests there are on this host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog
from remuda_core.errors import RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId

from remuda_agent.hypervisor import Hypervisor
from remuda_agent.steps.ports import Owner

_log = structlog.get_logger(__name__)


async def copies_here(
    hypervisor: Hypervisor, owners: Callable[[], Iterable[tuple[str, Owner]]], host: HostId
) -> dict[InstanceId, Epoch]:
    """The epoch of every copy: of its domain, else the newest of its directories that are this host's.

    What cannot be looked at is left out with a line in the log: it is refused all the same, and only not
    counted before the leader speaks of it.
    """
    found: dict[InstanceId, Epoch] = {}
    try:
        for _, owner in await asyncio.to_thread(lambda: list(owners())):
            if owner.host_id == host:
                found[owner.instance_id] = max(owner.epoch, found.get(owner.instance_id, owner.epoch))
    except (RemudaError, OSError) as error:
        _log.warning("directories of instances cannot be listed", error=str(error))
    try:
        found |= {view.instance_id: view.epoch for view in await hypervisor.domains()}
    except RemudaError as error:
        _log.warning("domains cannot be listed", error=str(error))
    return found

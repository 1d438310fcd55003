"""Which copies of guests there are on this host."""

from __future__ import annotations

import asyncio

import structlog
from remuda_core.errors import RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId

from remuda_agent.disks.owner import read_owner
from remuda_agent.disks.pools import Pools
from remuda_agent.hypervisor import Hypervisor
from remuda_agent.quarantine.standing import Found

_log = structlog.get_logger(__name__)


async def copies_here(hypervisor: Hypervisor, pools: Pools, host: HostId) -> Found:
    """Takes what it cannot look at for incomplete, and never fails: an agent starts all the same."""
    directories = await asyncio.to_thread(_directories, pools, host)
    try:
        domains = {view.instance_id: view.epoch for view in await hypervisor.domains()}
    except RemudaError as error:
        _log.warning("domains cannot be listed", error=str(error))
        return Found(copies=directories.copies, complete=False)
    return Found(copies={**directories.copies, **domains}, complete=directories.complete)


def _directories(pools: Pools, host: HostId) -> Found:
    found: dict[InstanceId, Epoch] = {}
    complete = True
    for pool in pools:
        try:
            directories = sorted(pool.instances.iterdir())
        except OSError as error:
            _log.warning("a pool cannot be listed", pool=pool.name, error=str(error))
            complete = False
            continue
        for directory in directories:
            try:
                owner = read_owner(directory)
            except (RemudaError, OSError) as error:
                _log.warning("whose files they are cannot be read", path=str(directory), error=str(error))
                complete = False
                continue
            if owner is not None and owner.host_id == host:
                found[owner.instance_id] = max(owner.epoch, found.get(owner.instance_id, owner.epoch))
    return Found(copies=found, complete=complete)

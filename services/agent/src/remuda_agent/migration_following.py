"""Waiting for the end of a migration's job, whatever becomes of the call that began it.

The call can end without the job: its connection to libvirtd broke, or the agent that made it has died. What
counts is the job, and it is over only when the hypervisor, asked again until it answers, shows none.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId

from remuda_agent.hypervisor import CompletedMigration, DomainView, Hypervisor
from remuda_agent.migration_steering import POLL_SECONDS

_log = structlog.get_logger(__name__)

AWAY_SECONDS = 1.0
"""Between two questions to a hypervisor that does not answer."""
MISSED_AFTER_LOOKS = 5
"""A guest that was given away is off a moment before its call returns."""


def under_way(view: DomainView) -> bool:
    """A migration leaves this host."""
    return view.job == "MIGRATION_OUT"


def given_away(view: DomainView) -> bool:
    """A migration has ended well, as the source shows it."""
    return not view.active and view.reason == "migrated"


async def follow(
    hypervisor: Hypervisor,
    instance: InstanceId,
    call: Callable[[], Awaitable[CompletedMigration]] | None,
    begun: asyncio.Event,
    *,
    missed: Callable[[], Awaitable[None]],
) -> CompletedMigration:
    """Makes the call, or takes up a job without one, and returns when the guest was given away. `missed` is
    called when the guest is off and the call does not return.

    Raises what the call raised, once no job is left; for a job without call MIGRATION_FAILED, GUEST_STOPPED.
    """
    failure = RemudaError(Reason.MIGRATION_FAILED, "the migration ended, and the guest has not moved")
    if call is not None:
        # The call stays in this task: whoever cancels that before it has begun knows that it never will.
        minding = asyncio.create_task(_mind_the_end(hypervisor, instance, begun, missed))
        try:
            return await call()
        except RemudaError as error:
            if not begun.is_set():
                raise
            failure = error
        finally:
            minding.cancel()
            await asyncio.gather(minding, return_exceptions=True)
    view = await _when_over(hypervisor, instance)
    if view is not None and given_away(view):
        return await _measured(hypervisor, instance)
    if call is None and view is not None and not view.active and view.reason == "shutdown":
        raise RemudaError(Reason.GUEST_STOPPED, "the guest powered itself off while it was migrated")
    raise failure


async def _mind_the_end(
    hypervisor: Hypervisor, instance: InstanceId, begun: asyncio.Event, missed: Callable[[], Awaitable[None]]
) -> None:
    """Beside the call, until cancelled."""
    await begun.wait()
    looks_off = 0
    while True:
        await asyncio.sleep(AWAY_SECONDS)
        looks_off = looks_off + 1 if await _is_off(hypervisor, instance) else 0
        if looks_off >= MISSED_AFTER_LOOKS:
            looks_off = 0
            await missed()


async def _is_off(hypervisor: Hypervisor, instance: InstanceId) -> bool:
    try:
        view = await hypervisor.view(instance)
    except RemudaError:
        return False
    return view is None or not view.active


async def _when_over(hypervisor: Hypervisor, instance: InstanceId) -> DomainView | None:
    told = ""
    while True:
        try:
            view = await hypervisor.view(instance)
        except RemudaError as error:
            if str(error) != told:
                told = str(error)
                _log.warning("a migration cannot be seen", instance=instance, error=told)
            await asyncio.sleep(AWAY_SECONDS)
            continue
        if view is None or not under_way(view) or view.reason == "postcopy_failed":
            # libvirt keeps the job of a broken post-copy, for whoever recovers it.
            return view
        await asyncio.sleep(POLL_SECONDS)


async def _measured(hypervisor: Hypervisor, instance: InstanceId) -> CompletedMigration:
    """Unknown rather than a failure: the guest has moved."""
    try:
        return await hypervisor.completed_stats(instance) or CompletedMigration()
    except RemudaError:
        return CompletedMigration()

"""Whether a guest that has just arrived answers: its agent is asked from the moment on when it goes on here,
while the source still cleans up, so that nobody waits for the answer later.
"""

import asyncio
import contextlib
from dataclasses import dataclass, field

import structlog
from remuda_core.errors import RemudaError
from remuda_core.ids import InstanceId

from remuda_agent.hypervisor import EventKind, Hypervisor, HypervisorEvent

_log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 2.0
EARLY_SECONDS = 1.0
"""While a guest is asked, libvirt lets nobody read its description: so long may an agent that hangs keep the
leader from seeing that its guest has arrived. libvirt counts in whole seconds.
"""
FRESH_SECONDS = 10.0
"""An answer older than this says nothing of now: the leader may have been away."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.2
"""libvirt connects to an arrived guest's channel some 30 ms after it goes on, and says no at once before."""

_TELLING = frozenset(
    {
        EventKind.RESUMED,
        EventKind.SUSPENDED,
        EventKind.SHUTDOWN,
        EventKind.STOPPED,
        EventKind.CRASHED,
        EventKind.UNDEFINED,
    }
)
"""After these, what a guest said before does not count any more."""


@dataclass(slots=True, eq=False)
class _Greeting:
    began: float
    """Seconds of the event loop's clock."""
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    """Somebody waits: of the questions that are asked from now on, the first answer counts."""
    task: "asyncio.Task[bool | None] | None" = None


class Greetings:
    """Of this host's guests. Its methods belong to the event loop's thread."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self._begun: dict[InstanceId, _Greeting] = {}

    def hear(self, event: HypervisorEvent) -> None:
        if event.kind is EventKind.RELIST:
            for instance in list(self._begun):
                self._forget(instance)
        if event.instance_id is None or event.kind not in _TELLING:
            return
        self._forget(event.instance_id)
        if event.kind is EventKind.RESUMED and event.detail == "migrated":
            greeting = _Greeting(began=_now())
            greeting.task = asyncio.create_task(
                self._greet(event.instance_id, greeting), name=f"greet {event.instance_id}"
            )
            self._begun[event.instance_id] = greeting

    async def answered(self, instance: InstanceId) -> bool:
        """Waits PATIENCE_SECONDS at most. Raises HYPERVISOR_ERROR."""
        greeting = self._begun.pop(instance, None)
        if greeting is not None and greeting.task is not None and _now() - greeting.began < FRESH_SECONDS:
            greeting.wanted.set()
            said = await greeting.task
            if said or (said is False and _now() - greeting.began < PATIENCE_SECONDS):
                return said
        return await self._hypervisor.guest_agent_ping(instance, timeout=PATIENCE_SECONDS)

    async def close(self) -> None:
        begun = [greeting.task for greeting in self._begun.values() if greeting.task]
        for instance in list(self._begun):
            self._forget(instance)
        await asyncio.gather(*begun, return_exceptions=True)

    def _forget(self, instance: InstanceId) -> None:
        known = self._begun.pop(instance, None)
        if known is not None and known.task is not None:
            known.task.cancel()

    async def _greet(self, instance: InstanceId, greeting: _Greeting) -> bool | None:
        """None: it could not be asked."""
        try:
            # libvirt tells of other people's guests, too: those are left alone.
            if await self._hypervisor.view(instance) is None:
                return None
            return await self._until_answered(instance, greeting)
        except RemudaError as error:
            _log.info("an arrived guest cannot be greeted", instance=instance, error=str(error))
            return None

    async def _until_answered(self, instance: InstanceId, greeting: _Greeting) -> bool:
        pause = FIRST_PAUSE_SECONDS
        while (left := greeting.began + PATIENCE_SECONDS - _now()) > 0:
            last, began = greeting.wanted.is_set(), _now()
            if await self._hypervisor.guest_agent_ping(instance, timeout=min(left, EARLY_SECONDS)):
                return True
            if last:
                return False
            hangs = _now() - began >= EARLY_SECONDS / 2
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left if hangs else pause):
                    await greeting.wanted.wait()
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return False


def _now() -> float:
    return asyncio.get_running_loop().time()

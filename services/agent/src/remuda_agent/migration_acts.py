"""What is done to a running migration, by its ladder or by a command: each act kept on disk and told.

Every call may raise RemudaError, and is then tried again at the next look: nothing is noted before it holds,
but for the two that must be known of even when this process dies in the middle of them.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from remuda.agent.v1.migration_pb2 import StartMigration
from remuda_core.ids import InstanceId
from remuda_core.migration import ladder
from remuda_core.migration.ladder import Allowed, Look, Pace, Rung, Standing

from remuda_agent.hypervisor import Hypervisor
from remuda_agent.migration_ledger import Ledger
from remuda_agent.migration_parameters import Parameters, timeout_seconds
from remuda_agent.migration_progress import QEMU_DOWNTIME_MS

Tell = Callable[[str, str], None]
"""A milestone's type and detail."""


def allowed_by(start: StartMigration, pace: Pace) -> Allowed:
    policy = start.policy
    return Allowed(
        max_downtime_ms=policy.max_downtime_ms or QEMU_DOWNTIME_MS,
        timeout_seconds=timeout_seconds(policy),
        auto_converge=policy.auto_converge,
        post_copy=policy.allow_post_copy,
        pause=policy.pause_on_timeout,
        pace=pace,
    )


class Acts:
    """Of one run of one migration; holds how far up the ladder it is."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        start: StartMigration,
        *,
        parameters: Parameters,
        ledger: Ledger,
        pace: Pace,
        tell: Tell,
    ) -> None:
        self._hypervisor = hypervisor
        self._instance = InstanceId(start.key.instance_id)
        self._policy = start.policy
        self._asked = allowed_by(start, pace)
        self._parameters = parameters
        self._ledger = ledger
        self._tell = tell
        self._why_post_copy = ""
        self.standing = self._restored()
        self.doubtful_pause = parameters.paused_by_us
        """Noted, and perhaps not done before the agent died."""

    @property
    def at(self) -> float:
        """Seconds since the job began; the same over restarts of the agent."""
        return (datetime.now(UTC) - self._parameters.began).total_seconds()

    @property
    def allowed(self) -> Allowed:
        """As asked at the start, and by commands since."""
        commanded = self._ledger.entries.max_downtime_ms
        return replace(self._asked, max_downtime_ms=commanded) if commanded else self._asked

    @property
    def cap_mib_s(self) -> int:
        commanded = self._ledger.entries.cap_mib_s
        return self._policy.bandwidth_mib_s if commanded is None else commanded

    @property
    def cap_waits(self) -> bool:
        return self._ledger.entries.cap_waits

    @property
    def post_copy_tried(self) -> bool:
        return self._ledger.entries.post_copy_tried

    async def climb(self, look: Look) -> str:
        """Takes the next rung if it is due. Why the job is to be aborted; empty: it is not."""
        standing, act = ladder.climb(self.allowed, self.standing, look)
        match act.rung if act is not None else Rung.NONE:
            case Rung.DOWNTIME if act is not None:
                before = self.standing.downtime_ms
                await self._hypervisor.set_max_downtime(self._instance, milliseconds=act.downtime_ms)
                self._tell("DOWNTIME_RAISED", f"{before} ms to {act.downtime_ms} ms; {act.why}")
            case Rung.POST_COPY if act is not None:
                await self.begin_post_copy(f"the ladder: {act.why}")
            case Rung.PAUSE if act is not None:
                if not await self.pause(f"the deadline: {act.why}"):
                    return ""  # its job cannot be seen just now
        self._stand(standing)
        if standing.rung is not Rung.ABORT:
            return ""
        return act.why if act is not None else "it was to be aborted before the agent was restarted"

    async def set_bandwidth(self, mib_per_second: int, *, waits: bool) -> None:
        await self._hypervisor.set_bandwidth(
            self._instance, mib_per_second=mib_per_second, post_copy=self._policy.allow_post_copy
        )
        self._ledger.note(cap_mib_s=mib_per_second, cap_waits=waits)

    async def set_max_downtime(self, milliseconds: int) -> int:
        """Returns what is in force."""
        holds = await self._hypervisor.set_max_downtime(self._instance, milliseconds=milliseconds)
        self._ledger.note(max_downtime_ms=milliseconds)
        self._stand(ladder.commanded_downtime(self.standing, milliseconds, self.at))
        return holds

    async def begin_post_copy(self, why: str) -> None:
        # Before: whoever comes after a crash must not take for pre-copy what he cannot see.
        self._why_post_copy = why
        self._ledger.note(post_copy_tried=True)
        await self._hypervisor.start_post_copy(self._instance)
        self._stand(ladder.raised_to(self.standing, Rung.POST_COPY, self.at))

    def post_copy_seen(self) -> None:
        self._tell("POST_COPY_BEGUN", self._why_post_copy)

    async def pause(self, why: str) -> bool:
        """So that it can end: a guest that stands still dirties nothing. False: no job of it is seen now."""
        view = await self._hypervisor.view(self._instance)
        if view is None or view.job != "MIGRATION_OUT":
            return False
        if view.power_state == "RUNNING":
            # Before: whoever comes after a crash must not leave the guest so.
            await asyncio.to_thread(self._parameters.note_pause)
            await self._hypervisor.pause(self._instance)
            self._tell("GUEST_PAUSED", why)
        self.doubtful_pause = False
        self._stand(ladder.raised_to(self.standing, Rung.PAUSE, self.at))
        return True

    def _stand(self, standing: Standing) -> None:
        known = self._ledger.entries
        now = (int(standing.rung), standing.since, standing.downtime_ms)
        self.standing = standing
        if now != (known.rung, known.since, known.downtime_ms) and standing.since > 0:
            self._ledger.note(rung=now[0], since=now[1], downtime_ms=now[2])

    def _restored(self) -> Standing:
        known = self._ledger.entries
        if not known.downtime_ms:
            standing = ladder.begin(self._asked)
        else:
            standing = ladder.restored(
                rung=Rung(known.rung), since=known.since, downtime_ms=known.downtime_ms, at=self.at
            )
        if self._parameters.paused_by_us:
            standing = ladder.raised_to(standing, Rung.PAUSE, self.at)
        return standing


class Stopwatch:
    """Bytes over time, from a look to a later one; monotonic seconds."""

    def __init__(self, sent: int) -> None:
        self._sent, self._since = sent, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since

    def rate(self, sent: int) -> float:
        """Bytes per second."""
        return (sent - self._sent) / max(self.seconds, 1e-3)

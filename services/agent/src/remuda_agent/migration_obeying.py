"""Carries out the commands to a running migration, a little at every look: no command holds up the steering.

One after the other, in the order in which they came; only a cancel overtakes. The table of what is possible
in which phase is core's; here is what each does and how it is proven.
"""

import time
from dataclasses import dataclass

from remuda.compute.v1.migration_pb2 import CommandResult
from remuda_core.errors import RemudaError
from remuda_core.migration.bandwidth import Change, followed
from remuda_core.migration.commands import Command, Phase, Verdict, judge, refusal

from remuda_agent.hypervisor import MigrationJobStats
from remuda_agent.jobs import Job
from remuda_agent.migration_acts import Acts, Stopwatch, Tell
from remuda_agent.migration_commands import (
    CommandBook,
    Order,
    applied,
    deferred,
    not_effective,
    refused,
)
from remuda_agent.migration_ledger import Answered, Ledger

PATIENCE_SECONDS = 5.0
"""Within which a job's figures have to follow."""
WINDOW_SECONDS = 1.0
"""Over which a rate is taken."""
MIB = 1 << 20


@dataclass(slots=True, kw_only=True)
class _Trial:
    """A command that the hypervisor was told, and whose effect is not seen yet."""

    order: Order
    began: float
    told: bool = False
    change: Change | None = None
    watch: Stopwatch | None = None
    seen: float = 0.0
    """The rate of the last window."""

    @property
    def late(self) -> bool:
        return time.monotonic() - self.began >= PATIENCE_SECONDS

    @property
    def blind(self) -> bool:
        return time.monotonic() - self.began >= 3 * PATIENCE_SECONDS


class Obeying:
    """Of one run of one migration."""

    def __init__(
        self,
        acts: Acts,
        book: CommandBook,
        ledger: Ledger,
        job: Job,
        *,
        post_copy_allowed: bool,
        tell: Tell,
    ) -> None:
        self._acts = acts
        self._book = book
        self._ledger = ledger
        self._job = job
        self._post_copy_allowed = post_copy_allowed
        self._tell = tell
        self._trial: _Trial | None = None
        self._watch: Stopwatch | None = None
        self._rate = 0.0

    async def look(self, phase: Phase, stats: MigrationJobStats | None) -> None:
        """`stats` None: there are none at the moment."""
        self._cancels(phase)
        if stats is not None and phase is Phase.MEMORY:
            self._measure(stats)
            if self._acts.cap_waits:
                await self._put_cap_into_force()
        while (order := self._next()) is not None:
            result = await self._carry_out(order, phase, stats)
            if result is None:
                return
            self._answer(order, result)

    def ended(self) -> None:
        """The job is over: what the hypervisor had been told by then was carried out."""
        trial, self._trial = self._trial, None
        if trial is not None and trial.told and not trial.order.answer.done():
            self._answer(
                trial.order, applied(Phase.FINISHING, "the job ended before its figures could show it")
            )

    def _cancels(self, phase: Phase) -> None:
        for order in tuple(self._book.waiting):
            if order.command is not Command.CANCEL:
                continue
            if judge(order.command, phase, post_copy_allowed=self._post_copy_allowed) is Verdict.ACT:
                # Answered when the job has ended: it may still come too late.
                self._job.stop.set()
            elif not self._job.stop.is_set():
                self._answer(order, refused(phase, self._refusal(order, phase)))

    def _next(self) -> Order | None:
        return next((one for one in self._book.waiting if one.command is not Command.CANCEL), None)

    def _answer(self, order: Order, result: CommandResult) -> None:
        self._trial = None
        self._book.answer(order, result)
        self._ledger.answer(Answered(request=order.request, result=result))
        if result.effect == CommandResult.EFFECT_APPLIED:
            self._tell("COMMAND_APPLIED", f"{order.command}: {result.observed}")

    def _refusal(self, order: Order, phase: Phase) -> RemudaError:
        return refusal(order.command, phase, post_copy_allowed=self._post_copy_allowed)

    async def _carry_out(
        self, order: Order, phase: Phase, stats: MigrationJobStats | None
    ) -> CommandResult | None:
        """None: not yet."""
        if self._trial is not None:
            return await self._proven(self._trial, phase, stats)
        verdict = judge(order.command, phase, post_copy_allowed=self._post_copy_allowed)
        if verdict is Verdict.HOLD:
            return None
        if verdict is Verdict.REFUSE:
            return refused(phase, self._refusal(order, phase))
        self._trial = _Trial(order=order, began=time.monotonic())
        return await self._proven(self._trial, phase, stats)

    async def _proven(
        self, trial: _Trial, phase: Phase, stats: MigrationJobStats | None
    ) -> CommandResult | None:
        try:
            match trial.order.command:
                case Command.SET_BANDWIDTH:
                    return await self._bandwidth(trial, phase, stats)
                case Command.SET_MAX_DOWNTIME:
                    return await self._max_downtime(trial, phase)
                case Command.SWITCH_TO_POST_COPY:
                    return await self._post_copy(trial, phase, stats)
                case _:
                    return await self._pause(trial, phase)
        except RemudaError as error:
            # Too early, or libvirtd is just away: asked again at the next look.
            return refused(phase, error) if trial.late else None

    async def _bandwidth(
        self, trial: _Trial, phase: Phase, stats: MigrationJobStats | None
    ) -> CommandResult | None:
        asked = trial.order.request.set_bandwidth.mib_per_second
        if not trial.told and phase is Phase.DISKS:
            await self._acts.set_bandwidth(asked, waits=True)
            return deferred(phase, f"{_cap(asked)} when memory is copied")
        if not trial.told:
            trial.change = Change(
                old_cap=self._acts.cap_mib_s * MIB,
                new_cap=asked * MIB,
                rate_before=round(self._rate or (stats.memory_bytes_per_second if stats else 0)),
            )
            await self._acts.set_bandwidth(asked, waits=False)
            trial.told = True
            return None
        if phase is not Phase.MEMORY:
            return applied(phase, f"{_cap(asked)}; memory was through before the rate could show it")
        if stats is not None:
            self._weigh(trial, stats)
        assert trial.change is not None
        if trial.seen and followed(trial.change, trial.seen):
            return applied(phase, f"{_cap(asked)}; the job sends {trial.seen / MIB:.1f} MiB/s")
        if trial.seen and trial.late:
            return not_effective(
                phase, f"{_cap(asked)} was accepted, the job sends {trial.seen / MIB:.1f} MiB/s"
            )
        if trial.watch is None and trial.blind:
            return not_effective(phase, f"{_cap(asked)} was accepted, the job shows no figures")
        return None

    def _weigh(self, trial: _Trial, stats: MigrationJobStats) -> None:
        if trial.watch is None:
            # From its first figure: libvirt shows none for seconds when it goes from disks to memory.
            trial.watch, trial.began = Stopwatch(stats.memory_processed_bytes), time.monotonic()
        elif trial.watch.seconds >= WINDOW_SECONDS:
            trial.seen = max(1.0, trial.watch.rate(stats.memory_processed_bytes))
            trial.watch = Stopwatch(stats.memory_processed_bytes)

    async def _max_downtime(self, trial: _Trial, phase: Phase) -> CommandResult | None:
        asked = trial.order.request.set_max_downtime.max_downtime_ms
        holds = await self._acts.set_max_downtime(asked)
        if holds == asked:
            return applied(phase, f"at most {holds} ms")
        if not trial.late:
            return None
        return not_effective(phase, f"{asked} ms was accepted, {holds} ms is in force")

    async def _post_copy(
        self, trial: _Trial, phase: Phase, stats: MigrationJobStats | None
    ) -> CommandResult | None:
        if phase is Phase.POST_COPY:
            return applied(phase, "the guest has left; the rest of its memory follows it")
        # What cannot be seen, for libvirt may be busy with it, is not called ineffective yet.
        if trial.told and not (trial.late and stats is not None) and not trial.blind:
            return None
        if trial.told:
            return not_effective(phase, "libvirt took it, and the guest still runs here")
        if phase is not Phase.MEMORY:
            return refused(phase, self._refusal(trial.order, phase))
        if stats is None or stats.iteration < 1:
            trial.began = time.monotonic()  # QEMU takes it from the first pass on
            return None
        await self._acts.begin_post_copy("a command")
        trial.told = True
        return None

    async def _pause(self, trial: _Trial, phase: Phase) -> CommandResult | None:
        if await self._acts.pause("a command"):
            return applied(phase, "the guest stands still until the rest is copied")
        return refused(phase, self._refusal(trial.order, Phase.FINISHING)) if trial.late else None

    async def _put_cap_into_force(self) -> None:
        cap = self._acts.cap_mib_s
        try:
            await self._acts.set_bandwidth(cap, waits=False)
        except RemudaError:
            return  # at the next look
        self._tell("COMMAND_APPLIED", f"set_bandwidth: {_cap(cap)} from the memory phase on")

    def _measure(self, stats: MigrationJobStats) -> None:
        """The rate before a command is what its effect is compared with."""
        if self._watch is None:
            self._watch = Stopwatch(stats.memory_processed_bytes)
        elif self._watch.seconds >= WINDOW_SECONDS:
            self._rate = self._watch.rate(stats.memory_processed_bytes)
            self._watch = Stopwatch(stats.memory_processed_bytes)


def _cap(mib_per_second: int) -> str:
    return f"at most {mib_per_second} MiB/s" if mib_per_second else "no cap"

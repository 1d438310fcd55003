"""The ladder of a live migration: what is done, step by step, about one that does not come to its end. Pure.

    downtime, raised in steps --> auto-converge --> post-copy         while it is stalled
                      pause, or abort                                 at the deadline
                      abort                                           when a pause does not end it either

A job is stalled when the best number of remaining bytes has not improved by 4 % within 40 s: for memory as
seen at the beginning of each pass, since within one it falls by itself; for disks at every look. Nothing
below the deadline helps disks: that they are stalled is only told.

The caller keeps the `Standing` between looks, carries out the `Act`, and drops the new standing when that
failed: the same look is then judged again. Seconds count from the beginning of the job.
"""

from dataclasses import dataclass, field, replace
from enum import IntEnum

from remuda_core.migration.commands import Phase

FIRST_DOWNTIME_MS = 100
"""Asked of QEMU at the start; it doubles with every step."""
IMPROVEMENT = 0.04
STALL_SECONDS = 40.0
STEP_SECONDS = 5.0
"""Between two raises of the downtime, while the job stays stalled."""
STUCK_SECONDS = 120.0
"""A guest that was paused so that it can be moved, and of which nothing more is sent, stands still for
nothing.
"""
PAUSE_SECONDS = 600.0
"""It stands still no longer than this, whatever is sent."""


class Rung(IntEnum):
    """In order; a job never goes down."""

    NONE = 0
    DOWNTIME = 1
    AUTO_CONVERGE = 2
    """No act: the flag was given at the start, and QEMU's throttle is given time to bite."""
    POST_COPY = 3
    PAUSE = 4
    ABORT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a host's operator sets; 0: as above."""

    first_downtime_ms: int = 0
    stall_seconds: float = 0.0

    @property
    def stall(self) -> float:
        return self.stall_seconds or STALL_SECONDS

    def first_downtime(self, max_downtime_ms: int) -> int:
        """Milliseconds that a job is started with."""
        return min(self.first_downtime_ms or FIRST_DOWNTIME_MS, max_downtime_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What the request allows, and how fast the host takes it."""

    max_downtime_ms: int
    timeout_seconds: float
    auto_converge: bool = False
    post_copy: bool = False
    pause: bool = False
    """At the deadline, instead of the abort."""
    pace: Pace = Pace()


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Job statistics at one moment."""

    at: float
    phase: Phase
    iteration: int = 0
    memory_remaining: int = 0
    disk_remaining: int = 0
    sent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The fewest remaining bytes so far, and since when; None: not looked at."""

    remaining: int | None = None
    since: float = 0.0

    def after(self, remaining: int, at: float) -> "Best":
        if self.remaining is None or remaining < self.remaining * (1 - IMPROVEMENT):
            return Best(remaining=remaining, since=at)
        return self

    def stalled(self, at: float, patience: float) -> bool:
        return self.remaining is not None and at - self.since >= patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far up a job is. `restored` makes one from what survives the agent."""

    downtime_ms: int
    rung: Rung = Rung.NONE
    since: float = 0.0
    """When the last rung, or step of one, was taken."""
    iteration: int = 0
    """The last pass that was judged."""
    memory: Best = field(default_factory=Best)
    disks: Best = field(default_factory=Best)
    sent: int = 0
    moved_on: float = 0.0
    """When `sent` was seen to grow last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What is to be done now."""

    rung: Rung
    downtime_ms: int = 0
    """Of DOWNTIME: to be in force."""
    why: str = ""
    """One line for people."""


def begin(allowed: Allowed) -> Standing:
    return Standing(downtime_ms=allowed.pace.first_downtime(allowed.max_downtime_ms))


def restored(*, rung: Rung, since: float, downtime_ms: int, at: float) -> Standing:
    """After a restart of the agent: what is known of the job's remaining bytes begins anew."""
    return Standing(rung=rung, since=since, downtime_ms=downtime_ms, moved_on=at)


def raised_to(standing: Standing, rung: Rung, at: float) -> Standing:
    """A command has taken the rung."""
    return standing if standing.rung >= rung else replace(standing, rung=rung, since=at, moved_on=at)


def commanded_downtime(standing: Standing, downtime_ms: int, at: float) -> Standing:
    """A command has set the downtime: who gives it also means it as the new limit."""
    return replace(standing, downtime_ms=downtime_ms, since=at)


def climb(allowed: Allowed, standing: Standing, look: Look) -> tuple[Standing, Act | None]:
    """The new standing, and what is to be done for it.

    In post-copy there is nothing to be done: each host has a part of the guest, and only the job can bring
    them together. Otherwise a job is over, or told to abort, PAUSE_SECONDS after its deadline at the latest.
    """
    if look.phase in (Phase.POST_COPY, Phase.FINISHING):
        return raised_to(standing, Rung.POST_COPY, look.at), None
    judged = look.phase is Phase.MEMORY and look.iteration > standing.iteration
    standing = _noted(standing, look, judged=judged)
    if standing.rung is Rung.ABORT:
        return standing, None
    if standing.rung is Rung.PAUSE:
        return _paused(standing, look)
    if look.at >= allowed.timeout_seconds:
        late = f"no switch-over within {allowed.timeout_seconds:g} s; {_progress(standing, look)}"
        return _take(standing, Act(rung=Rung.PAUSE if allowed.pause else Rung.ABORT, why=late), look.at)
    if not judged or not standing.memory.stalled(look.at, allowed.pace.stall):
        return standing, None
    return _stalled(allowed, standing, look)


def _noted(standing: Standing, look: Look, *, judged: bool) -> Standing:
    memory, disks, iteration = standing.memory, standing.disks, standing.iteration
    if judged:
        memory, iteration = memory.after(look.memory_remaining, look.at), look.iteration
    if look.phase is Phase.DISKS:
        disks = disks.after(look.disk_remaining, look.at)
    moved = look.sent > standing.sent
    return replace(
        standing,
        memory=memory,
        disks=disks,
        iteration=iteration,
        sent=max(standing.sent, look.sent),
        moved_on=look.at if moved else standing.moved_on,
    )


def _stalled(allowed: Allowed, standing: Standing, look: Look) -> tuple[Standing, Act | None]:
    why = _progress(standing, look)
    if standing.rung <= Rung.DOWNTIME and standing.downtime_ms < allowed.max_downtime_ms:
        if standing.rung is Rung.DOWNTIME and look.at - standing.since < STEP_SECONDS:
            return standing, None
        more = min(allowed.max_downtime_ms, 2 * max(1, standing.downtime_ms))
        return _take(standing, Act(rung=Rung.DOWNTIME, downtime_ms=more, why=why), look.at)
    if standing.rung is not Rung.NONE and look.at - standing.since < allowed.pace.stall:
        return standing, None
    if allowed.auto_converge and standing.rung < Rung.AUTO_CONVERGE:
        return replace(standing, rung=Rung.AUTO_CONVERGE, since=look.at), None
    if allowed.post_copy and standing.rung < Rung.POST_COPY:
        return _take(standing, Act(rung=Rung.POST_COPY, why=why), look.at)
    return standing, None


def _paused(standing: Standing, look: Look) -> tuple[Standing, Act | None]:
    stood, idle = look.at - standing.since, look.at - max(standing.moved_on, standing.since)
    if stood < PAUSE_SECONDS and idle < STUCK_SECONDS:
        return standing, None
    why = f"the guest has stood still for {stood:.0f} s, and nothing was sent for {idle:.0f} s"
    return _take(standing, Act(rung=Rung.ABORT, why=why), look.at)


def _take(standing: Standing, act: Act, at: float) -> tuple[Standing, Act]:
    downtime = act.downtime_ms if act.rung is Rung.DOWNTIME else standing.downtime_ms
    return replace(standing, rung=act.rung, since=at, downtime_ms=downtime), act


def _progress(standing: Standing, look: Look) -> str:
    """What is known of the remaining bytes, for people."""
    what, best = ("disks", standing.disks) if look.phase is Phase.DISKS else ("memory", standing.memory)
    if best.remaining is None:
        return f"phase {look.phase}"
    return f"{what}: never less than {best.remaining} bytes left, for {look.at - best.since:.0f} s"

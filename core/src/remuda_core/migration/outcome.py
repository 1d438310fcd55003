"""What became of a live migration, decided from what its two hosts show.

`decide_outcome` is total: every pair of sights has an answer, and no answer depends on the last word of one
host alone. Where it cannot be known who holds the guest's memory it says WAIT, never a guess: starting a
second copy destroys data, waiting only costs time. The table is in docs/ (migration), the facts under it were
measured with libvirt 9 and QEMU 7.2: a job is peer to peer and is not undefined at the source, so that a
source which has given its guest away shows SHUTOFF with the reason "migrated"; "unknown" once its libvirtd or
the host itself was restarted. The target's copy is transient while it is received; libvirt makes it
persistent at the very end, before it resumes the guest there: so an arrival is known whatever became of the
guest since.
"""

from dataclasses import dataclass
from enum import Enum, auto


class Power(Enum):
    """What a host shows of the domain."""

    UNREACHABLE = auto()
    """No answer: anything may be true there."""
    ABSENT = auto()
    RUNNING = auto()
    PAUSED = auto()
    SHUTOFF = auto()
    CRASHED = auto()


class Why(Enum):
    """libvirt's reason for it, as far as it matters here."""

    OTHER = auto()
    MIGRATION = auto()
    """PAUSED: around the switch-over. SHUTOFF ("migrated"): the guest was given away."""
    POSTCOPY = auto()
    """The guest's memory is on both hosts."""
    POSTCOPY_FAILED = auto()
    SHUTDOWN = auto()
    """The guest shut itself down."""
    CRASHED = auto()


class Job(Enum):
    NONE = auto()
    OUT = auto()
    IN = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One host's answer. UNREACHABLE and ABSENT carry no more."""

    power: Power
    why: Why = Why.OTHER
    job: Job = Job.NONE
    ours: bool = True
    """The domain carries the operation and the epoch that belong there. Another's is as good as absent."""
    persistent: bool = False
    """It has a definition that outlives it."""

    @property
    def here(self) -> bool:
        return self.ours and self.power not in (Power.UNREACHABLE, Power.ABSENT)

    @property
    def gone(self) -> bool:
        """It is known that there is no copy of ours."""
        return not self.here and self.power is not Power.UNREACHABLE

    @property
    def alive(self) -> bool:
        """It holds the guest's memory, or means to."""
        return self.here and self.power in (Power.RUNNING, Power.PAUSED)

    @property
    def split(self) -> bool:
        return self.here and self.why in (Why.POSTCOPY, Why.POSTCOPY_FAILED)

    @property
    def arrived(self) -> bool:
        """Of a target: the guest was received to its end, and libvirt is done with it."""
        return self.here and self.persistent and self.job is Job.NONE


ABSENT = Sight(power=Power.ABSENT)
UNREACHABLE = Sight(power=Power.UNREACHABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Journalled:
    """What the journal adds to what can be seen."""

    source_succeeded: bool = False
    """The source has said that libvirt's job ended well."""
    guest_ran: bool = True
    """Before the move. Only a guest that was paused all along may be left paused at the source without
    knowing of the target: nobody resumes it there."""
    split: bool = False
    """Both hosts were seen to run it, and the target's copy was ordered to pause: from then on only an
    operator ends that, by what he does to one of the two."""


class Outcome(Enum):
    MOVED = auto()
    """The target holds the guest: ownership moves, the source's copy is released."""
    STAYED = auto()
    """The source holds the guest, no job runs: failed cleanly; the target is cleaned up, or owes it."""
    JOIN = auto()
    """The source's job still runs: go on following it."""
    WAIT = auto()
    """It cannot be known before a host answers or is fenced, or before libvirt is done with the target's
    copy. The source is never resumed meanwhile."""
    GUEST_STOPPED = auto()
    """The guest shut itself down at the source: failed, the instance is STOPPED."""
    GUEST_LOST = auto()
    """No host runs it any more (QEMU died): failed; it can be started at the source by its intent."""
    SPLIT = auto()
    """Both have it alive. The copy on record goes on, the other is paused; an operator decides about it."""
    SPLIT_MEMORY = auto()
    """Post-copy broke: each host has a part. Nothing may be destroyed; recovery needs an operator."""


def decide_outcome(source: Sight, target: Sight, journal: Journalled) -> Outcome:
    """Look at the source first, then at the target: a switch-over between the two looks then shows as a
    source that still has its job, which is JOIN, and never as a guest that runs nowhere.
    """
    if source.split or target.split:
        return _post_copy(source, target)
    if journal.split and target.here and target.power is Power.PAUSED and not source.gone:
        return Outcome.SPLIT
    if target.here and target.power is Power.RUNNING:
        return _target_runs(source)
    if source.power is Power.UNREACHABLE:
        given_away = journal.source_succeeded and target.here and target.job is Job.NONE
        return Outcome.MOVED if given_away else Outcome.WAIT
    if source.here and source.job is Job.OUT:
        return Outcome.JOIN
    if source.here and source.power is Power.RUNNING:
        return _source_runs(target)
    if target.arrived:
        # Whatever the source calls its copy: the newest memory and disks are those of the target.
        return Outcome.MOVED if source.gone or source.job is Job.NONE else Outcome.WAIT
    if source.alive:
        return _source_paused(source, target, journal)
    return _source_off(source, target, journal)


def _post_copy(source: Sight, target: Sight) -> Outcome:
    if source.here and source.job is Job.OUT and source.why is not Why.POSTCOPY_FAILED:
        return Outcome.JOIN
    if target.here and target.job is Job.IN and target.why is not Why.POSTCOPY_FAILED:
        # Nothing can be followed at the source: a "start or join" there would mean a second start.
        return Outcome.WAIT
    if Power.UNREACHABLE in (source.power, target.power):
        return Outcome.WAIT
    return Outcome.SPLIT_MEMORY


def _target_runs(source: Sight) -> Outcome:
    """The target's word is enough, unless the source contradicts it."""
    if not (source.here and source.power is Power.RUNNING):
        return Outcome.MOVED
    # With a job it was a look before the switch-over, or libvirt is still ending it.
    return Outcome.JOIN if source.job is Job.OUT else Outcome.SPLIT


def _source_runs(target: Sight) -> Outcome:
    """libvirt resumed the source when it did not hear the target's last word, or nothing ever moved."""
    # A guest that was received to its end may have run there: both then have what the other has not.
    ran_there = target.power is Power.PAUSED or target.why is Why.SHUTDOWN
    return Outcome.SPLIT if target.arrived and ran_there else Outcome.STAYED


def _source_paused(source: Sight, target: Sight, journal: Journalled) -> Outcome:
    """The source holds the guest's memory, no job of ours runs there, and nothing has arrived."""
    if target.here and target.job is not Job.NONE:
        return Outcome.WAIT
    if target.power is Power.UNREACHABLE:
        # After the switch-over the target may run it: resuming here would make two. The reason does not tell
        # which it is: a guest that was paused so that its move could end shows "user" on both sides of it.
        switching = source.why is Why.MIGRATION or journal.guest_ran or journal.source_succeeded
        return Outcome.WAIT if switching else Outcome.STAYED
    if journal.source_succeeded and target.here:
        return Outcome.MOVED
    return Outcome.STAYED


def _source_off(source: Sight, target: Sight, journal: Journalled) -> Outcome:
    """No copy at the source, or one that has ended; and nothing has arrived."""
    if source.here and (source.why is Why.MIGRATION or journal.source_succeeded):
        return _given_away(target)
    if target.power is Power.UNREACHABLE:
        # The source's copy is off for a reason of its own, yet the target may have resumed before that.
        return Outcome.WAIT
    received = target.here and target.persistent
    if source.here and source.power is Power.SHUTOFF and source.why is Why.SHUTDOWN and not received:
        return Outcome.GUEST_STOPPED
    if target.here and target.job is not Job.NONE:
        # It came to the end of its memory, or libvirt gives it up: one of the two shows in a moment.
        return Outcome.WAIT
    return _given_away(target) if source.gone else Outcome.GUEST_LOST


def _given_away(target: Sight) -> Outcome:
    """The source has no guest any more."""
    if target.power is Power.UNREACHABLE or (target.here and target.job is not Job.NONE):
        return Outcome.WAIT
    # Paused without a job (it is resumed there), shut off or crashed since: whatever it is, it is there.
    return Outcome.GUEST_LOST if target.gone else Outcome.MOVED

"""Whether a migration heeds a new cap of its rate, judged by what it sends. Pure; bytes per second.

The hypervisor's own answer is no evidence: libvirt accepts a cap that QEMU then does not follow.
"""

from dataclasses import dataclass

_OVER = 1.25
"""A cap is kept on average over a tenth of a second, and bytes on their way count late."""
_HELD = 0.75
"""A job that sends at least this share of its cap is held by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A cap replaced by another. Caps: 0 is none."""

    old_cap: int
    new_cap: int
    rate_before: int

    @property
    def held_before(self) -> bool:
        """The old cap is what kept the job from sending more."""
        return self.old_cap > 0 and self.rate_before >= _HELD * self.old_cap

    @property
    def raises(self) -> bool:
        return self.new_cap == 0 or (0 < self.old_cap < self.new_cap)


def followed(change: Change, rate: float) -> bool:
    """Whether the `rate` since the change shows that the new cap is in force.

    Lowered: the rate is under it. Raised: it exceeds what the old one allowed. Where the old cap held nothing
    up, because the network or the guest's few writes did, a higher one cannot show: that counts as followed.
    """
    if change.new_cap and rate > _OVER * change.new_cap:
        return False
    if change.raises and change.held_before:
        risen = _OVER * change.old_cap
        return rate >= (min(risen, _HELD * change.new_cap) if change.new_cap else risen)
    return True

"""What is known in one boot of a host about the copies on it. Pure.

                        order to make it (prepare_disks, prepare_incoming), or KEEP
    unconfirmed -----------------------------------------------------------------------> confirmed
         |                                                                                   |
         +------- RELEASE, or its source was released ---> released <---------- RELEASE -----+

Whatever is not confirmed is refused: a copy that turns up later (a pool mounted late, a definition made by
hand) is no better known than one that was found at boot. Released is for good, and for all older epochs too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from remuda_core.ids import Epoch, InstanceId

MOST_RELEASED = 1000
"""Forgetting one is safe: what is unknown is refused as well, only in other words."""


class Decision(StrEnum):
    """What stands about a copy that is not confirmed."""

    NONE = "NONE"
    """The leader has not been heard since the boot."""
    HOLD = "HOLD"
    RELEASE = "RELEASE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The epoch of every copy: of its domain, else the newest of its directories that are this host's."""

    copies: Mapping[InstanceId, Epoch]
    complete: bool = True
    """Everything could be looked at. What could not is refused all the same, and only not counted before the
    leader speaks of it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One boot of one host; what `Quarantine` keeps on disk."""

    boot_id: str
    confirmed: Mapping[InstanceId, Epoch] = field(default_factory=dict)
    released: Mapping[InstanceId, Epoch] = field(default_factory=dict)
    """This epoch and all older ones; the newest entry last."""

    def may_run(self, instance: InstanceId, epoch: Epoch) -> bool:
        return self.confirmed.get(instance) == epoch

    def is_released(self, instance: InstanceId, epoch: Epoch) -> bool:
        return epoch <= self.released.get(instance, -1)

    def confirm(self, instance: InstanceId, epoch: Epoch) -> Standing:
        """Unchanged for what is released."""
        if self.may_run(instance, epoch) or self.is_released(instance, epoch):
            return self
        return replace(self, confirmed={**self.confirmed, instance: epoch})

    def release(self, instance: InstanceId, epoch: Epoch) -> Standing:
        if self.is_released(instance, epoch):
            return self
        released = {key: value for key, value in self.released.items() if key != instance}
        released[instance] = epoch
        for oldest in list(released)[: max(0, len(released) - MOST_RELEASED)]:
            del released[oldest]
        confirmed = dict(self.confirmed)
        if confirmed.get(instance, epoch) <= epoch:
            confirmed.pop(instance, None)
        return replace(self, confirmed=confirmed, released=released)

    def forget(self, instance: InstanceId, epoch: Epoch) -> Standing:
        """The copy was removed by order of the leader, who may have it made again with the same epoch."""
        if instance not in self.confirmed or self.confirmed[instance] > epoch:
            return self
        confirmed = {key: value for key, value in self.confirmed.items() if key != instance}
        return replace(self, confirmed=confirmed)


def begin(known: Standing | None, boot_id: str, found: Collection[InstanceId]) -> Standing:
    """The standing with which an agent starts; `found`: instances of which the host has a copy.

    Within one boot: as it was. After another: nothing is confirmed, and what is released stays so while a
    copy is there.
    """
    if known is not None and known.boot_id == boot_id:
        return known
    released = known.released if known is not None else {}
    return Standing(boot_id=boot_id, released={key: value for key, value in released.items() if key in found})

"""What may be done with a copy of a guest that a host shows. Pure.

KEEP is no order to start: it says whose copy the record names, so that a host which was booted may obey the
next order about it. RELEASE is for good, so all doubt ends in HOLD.
"""

from __future__ import annotations

from dataclasses import dataclass

from remuda.scheduler.v1.registry_pb2 import Verdict
from remuda_core.ids import HostId

KEEP, HOLD, RELEASE = Verdict.DECISION_KEEP, Verdict.DECISION_HOLD, Verdict.DECISION_RELEASE


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A copy of an instance: where, and of which placement."""

    host: HostId
    epoch: int


def decide(
    shown: Placed, record: Placed | None, *, held: bool, other_seen: bool, current: bool
) -> Verdict.Decision.ValueType:
    """The verdict on the copy `shown`.

    `record`: what instance_status names; None: the instance is unknown, or has no host.
    `held`: an operation holds the instance. Which pairs it names is known in full to its saga alone (its
    reservations hold the target of a move, its journal the source), so each operation counts as naming all.
    `other_seen`: the host of the record has shown the copy that the record names.
    `current`: what is asked here follows etcd at this moment.
    """
    if record is None or not current:
        return HOLD
    if shown == record:
        return KEEP
    moved_on = shown.host != record.host and shown.epoch < record.epoch
    return RELEASE if moved_on and not held and other_seen else HOLD

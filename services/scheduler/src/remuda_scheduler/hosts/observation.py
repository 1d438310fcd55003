"""What an observation does to an instance's stored status. Pure.

Only observations change observed state; while an operation holds the instance they change nothing else:
the saga decides `state`. Nothing is repaired here: a guest that runs although it should not is shown,
never stopped.
"""

from dataclasses import dataclass
from typing import TypeAlias

from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.instance_pb2 import Instance, ObservedState
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda_core.ids import HostId

_IDLE_STATES = (Instance.STATE_RUNNING, Instance.STATE_PAUSED, Instance.STATE_STOPPED)
"""States that follow the guest. All others are left by operations only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absorbed:
    """The status to store, and the event to tell."""

    status: InstanceStatus
    event: InstanceEvent | None


def absorb(status: InstanceStatus, host: HostId, seen: ObservedInstance, *, held: bool) -> Absorbed | None:
    """The new status after `seen` on `host`, or None when nothing changes (nothing is written then).

    Copies that are not the one on record (another host, another epoch) are none of this function's
    business: they are found by the janitor.
    """
    if status.host_id != host or (
        seen.epoch != status.epoch and seen.power_state != Instance.POWER_STATE_ABSENT
    ):
        return None
    known = status.observed
    nothing_new = (known.power_state, known.reason) == (seen.power_state, seen.reason)
    idle = not held and status.state in _IDLE_STATES
    # Also for what is known: it may have been seen while an operation held the instance, and was only noted.
    found = _idle_change(status.state, seen) if idle else None
    if nothing_new and found is None:
        return None
    changed = InstanceStatus()
    changed.CopyFrom(status)
    changed.observed.CopyFrom(
        ObservedState(
            power_state=seen.power_state,
            reason=seen.reason,
            host=f"hosts/{host}",
            observe_time=seen.observe_time,
        )
    )
    if found is None:
        return Absorbed(status=changed, event=None)
    state, severity, kind, message = found
    changed.state = state
    changed.status_message = message if state == Instance.STATE_FAILED else ""
    event = InstanceEvent(
        type=kind, severity=severity, message=message, host=f"hosts/{host}", principal="system/agent"
    )
    return Absorbed(status=changed, event=event)


_Finding: TypeAlias = "tuple[Instance.State.ValueType, InstanceEvent.Severity.ValueType, str, str]"
"""(new state, severity, event type, sentence)"""


def _idle_change(state: "Instance.State.ValueType", seen: ObservedInstance) -> "_Finding | None":
    """(new state, severity, event type, sentence) for an instance that no operation holds."""
    on = state in (Instance.STATE_RUNNING, Instance.STATE_PAUSED)
    match seen.power_state:
        case Instance.POWER_STATE_SHUTOFF if on:
            return _found_off(seen.reason)
        case Instance.POWER_STATE_CRASHED if on:
            return _found_off("crashed")
        case Instance.POWER_STATE_ABSENT:
            message = "Its domain is not defined on its host any more."
            return Instance.STATE_FAILED, InstanceEvent.SEVERITY_ERROR, "DOMAIN_VANISHED", message
        case Instance.POWER_STATE_PAUSED if state == Instance.STATE_RUNNING:
            message = f"The guest was found paused ({seen.reason})."
            return Instance.STATE_PAUSED, InstanceEvent.SEVERITY_WARNING, "GUEST_FOUND_PAUSED", message
        case Instance.POWER_STATE_RUNNING if state != Instance.STATE_RUNNING:
            message = "The guest was found running."
            return Instance.STATE_RUNNING, InstanceEvent.SEVERITY_WARNING, "GUEST_FOUND_RUNNING", message
        case _:
            return None


def _found_off(reason: str) -> _Finding:
    if reason == "shutdown":
        message = "The guest shut itself down."
        return Instance.STATE_STOPPED, InstanceEvent.SEVERITY_INFO, "GUEST_SHUT_DOWN", message
    if reason in ("crashed", "failed"):
        message = "QEMU ended unexpectedly."
        return Instance.STATE_FAILED, InstanceEvent.SEVERITY_ERROR, "GUEST_CRASHED", message
    message = f"The guest was found off ({reason})."
    return Instance.STATE_STOPPED, InstanceEvent.SEVERITY_WARNING, "GUEST_FOUND_OFF", message

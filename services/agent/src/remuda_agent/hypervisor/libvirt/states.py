"""libvirt's states and events in the agent's words: one total table, so that nothing new goes by unseen."""

from __future__ import annotations

import libvirt

from remuda_agent.hypervisor.model import EventKind, PowerState


def _words(prefix: str) -> dict[int, str]:
    """Lower-case names of the constants that begin with ``prefix``, by value."""
    return {
        value: name.removeprefix(prefix).lower()
        for name, value in vars(libvirt).items()
        if name.startswith(prefix) and isinstance(value, int) and not name.endswith("_LAST")
    }


_REASONS: dict[int, dict[int, str]] = {
    libvirt.VIR_DOMAIN_RUNNING: _words("VIR_DOMAIN_RUNNING_"),
    libvirt.VIR_DOMAIN_BLOCKED: _words("VIR_DOMAIN_BLOCKED_"),
    libvirt.VIR_DOMAIN_PAUSED: _words("VIR_DOMAIN_PAUSED_"),
    libvirt.VIR_DOMAIN_PMSUSPENDED: _words("VIR_DOMAIN_PMSUSPENDED_"),
    libvirt.VIR_DOMAIN_SHUTDOWN: _words("VIR_DOMAIN_SHUTDOWN_"),
    libvirt.VIR_DOMAIN_SHUTOFF: _words("VIR_DOMAIN_SHUTOFF_"),
    libvirt.VIR_DOMAIN_CRASHED: _words("VIR_DOMAIN_CRASHED_"),
}

_EVENTS: dict[int, tuple[EventKind, dict[int, str]]] = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: (EventKind.DEFINED, _words("VIR_DOMAIN_EVENT_DEFINED_")),
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: (EventKind.UNDEFINED, _words("VIR_DOMAIN_EVENT_UNDEFINED_")),
    libvirt.VIR_DOMAIN_EVENT_STARTED: (EventKind.STARTED, _words("VIR_DOMAIN_EVENT_STARTED_")),
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: (EventKind.SUSPENDED, _words("VIR_DOMAIN_EVENT_SUSPENDED_")),
    libvirt.VIR_DOMAIN_EVENT_RESUMED: (EventKind.RESUMED, _words("VIR_DOMAIN_EVENT_RESUMED_")),
    libvirt.VIR_DOMAIN_EVENT_STOPPED: (EventKind.STOPPED, _words("VIR_DOMAIN_EVENT_STOPPED_")),
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: (EventKind.SHUTDOWN, _words("VIR_DOMAIN_EVENT_SHUTDOWN_")),
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: (EventKind.SUSPENDED, _words("VIR_DOMAIN_EVENT_PMSUSPENDED_")),
    libvirt.VIR_DOMAIN_EVENT_CRASHED: (EventKind.CRASHED, _words("VIR_DOMAIN_EVENT_CRASHED_")),
}


def translate_state(state: int, reason: int) -> tuple[PowerState, str]:
    """What `virDomain.state` said."""
    word = _REASONS.get(state, {}).get(reason, "unknown")
    match state:
        case libvirt.VIR_DOMAIN_RUNNING | libvirt.VIR_DOMAIN_BLOCKED:
            return PowerState.RUNNING, word
        case libvirt.VIR_DOMAIN_PAUSED | libvirt.VIR_DOMAIN_PMSUSPENDED:
            return PowerState.PAUSED, word
        case libvirt.VIR_DOMAIN_SHUTDOWN:
            # The guest is on its way off; QEMU is still there and holds its disks.
            return PowerState.RUNNING, "shutting_down"
        case libvirt.VIR_DOMAIN_SHUTOFF:
            crashed = reason == libvirt.VIR_DOMAIN_SHUTOFF_CRASHED
            return (PowerState.CRASHED if crashed else PowerState.SHUTOFF), word
        case libvirt.VIR_DOMAIN_CRASHED:
            return PowerState.CRASHED, word
        case _:
            # NOSTATE, or a state that a later libvirt has: taken for running, because starting a second
            # copy is worse than not starting one.
            return PowerState.RUNNING, "nostate"


def translate_event(event: int, detail: int) -> tuple[EventKind, str]:
    """A lifecycle event; an unknown one says that everything should be looked at."""
    if event not in _EVENTS:
        return EventKind.RELIST, ""
    kind, words = _EVENTS[event]
    return kind, words.get(detail, "")

"""Which state a host is in, from what the leader has heard. Pure.

      CreateHost            first attach                silent for the limit
    ENROLLING ------------------> UP ---------------------------------> UNREACHABLE
                                  ^  \\ a new leader is elected               |
                    attaches      |   v                                      | attaches
                                  +- UNKNOWN --(silent for the limit)--------+--> UP
    FENCED is written by fencing alone, and left when the host attaches again.

UNKNOWN is never stored: it is what a leader that has not heard of the host yet makes of UP. Silence proves
nothing about guests: UNREACHABLE stops placement and nothing else.
"""

from remuda.compute.v1.host_pb2 import Host


def host_state(
    stored: "Host.State.ValueType", *, attached: bool, silent_seconds: float, limit_seconds: float
) -> "Host.State.ValueType":
    """The state now.

    `silent_seconds` counts from the last heartbeat, or from this leader's election when it has heard none:
    a new leader must not declare hosts unreachable for the time in which nobody listened.
    """
    if stored in (Host.STATE_ENROLLING, Host.STATE_FENCED) and not attached:
        return stored
    if silent_seconds >= limit_seconds:
        return Host.STATE_UNREACHABLE
    if attached:
        return Host.STATE_UP
    return Host.STATE_UNREACHABLE if stored == Host.STATE_UNREACHABLE else Host.STATE_UNKNOWN

"""When trying again may help, and for how long."""

import asyncio
import time

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId

from remuda_scheduler.engine.services import Timing

_PASSING = frozenset(
    {
        Reason.UNAVAILABLE,
        Reason.STORE_UNAVAILABLE,
        Reason.SHUTTING_DOWN,
        Reason.OUTCOME_UNKNOWN,
        Reason.NO_LEADER,
    }
)
"""Failures that say nothing about the order itself."""
_FINAL = frozenset({Reason.CANCELLED, Reason.STALE_EPOCH, Reason.STALE_LEADER, Reason.UNIMPLEMENTED})


class Attempts:
    """The tries of one step. Silence and quarantine are borne for the engine's patience, failures for
    `tries`.
    """

    def __init__(
        self, timing: Timing, silent: set[HostId], *, tries: int = 3, stubborn: bool = False
    ) -> None:
        """`silent`: hosts that have used up the patience already, noted here. `stubborn`: also repeat what
        the agent itself says has failed; for what must not be given up.
        """
        self._timing = timing
        self._silent = silent
        self._tries_left = tries - 1
        self._stubborn = stubborn
        self._silent_since: float | None = None
        self._quarantined_since: float | None = None
        self._pause = timing.first_pause

    async def again(self, error: RemudaError, host: HostId) -> bool:
        """Whether to try again after `error` of `host` (empty: none); waits before it says yes."""
        if error.reason is Reason.HOST_UNREACHABLE:
            self._silent_since = self._silent_since or time.monotonic()
            if host in self._silent or time.monotonic() - self._silent_since >= self._timing.patience:
                self._silent.add(host)
                return False
        elif error.reason is Reason.QUARANTINED:
            # The host has just booted: this passes when it has attached and been answered.
            self._silent_since = None
            self._quarantined_since = self._quarantined_since or time.monotonic()
            if time.monotonic() - self._quarantined_since >= self._timing.patience:
                return False
        else:
            self._silent_since = None
            repeatable = error.reason in _PASSING or (self._stubborn and error.reason not in _FINAL)
            if not repeatable or self._tries_left <= 0:
                return False
            self._tries_left -= 1
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 2, self._timing.longest_pause)
        return True

"""Thaws and resumes a guest whatever becomes of the agent: a process of its own, with its own connection.

    python -m remuda_agent.snapshots.guard URI INSTANCE FREEZE-LIMIT

A word a line on standard input, a line of JSON in answer: freeze, thaw, settle. Begins with a line of its
own, when it is connected. It undoes what it did when its input ends, which it does when the agent dies, and
thaws when the limit (seconds) is over. Nothing is imported but libvirt: it has to be there quickly.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import Any

import libvirt
import libvirt_qemu

PING_SECONDS = 3
"""An agent that is there answers at once."""
THAW_SECONDS = 5
PATIENCE_SECONDS = 120.0
"""How long it is tried to thaw a guest whose agent does not answer."""
_RETRY_SECONDS = 0.5


class Guarding:
    """One guest. `thaw_by`: when it is thawed, monotonic; None: nothing may be frozen."""

    def __init__(self, uri: str, instance: str, limit: float) -> None:
        self._uri = uri
        self._instance = instance
        self._limit = limit
        self.thaw_by: float | None = None
        self._stopped = False
        self.domain = self._find()

    def _find(self) -> Any:
        return libvirt.open(self._uri).lookupByUUIDString(self._instance)

    def freeze(self) -> dict[str, Any]:
        # A freeze whose answer is lost leaves the guest frozen: whom a ping does not reach is not asked.
        libvirt_qemu.qemuAgentCommand(self.domain, '{"execute": "guest-ping"}', PING_SECONDS, 0)
        self.thaw_by = time.monotonic() + self._limit
        self.domain.agentSetResponseTimeout(max(1, int(self._limit)), 0)
        try:
            return {"count": self.domain.fsFreeze()}
        except libvirt.libvirtError:
            self.thaw_by = time.monotonic()
            raise

    def thaw(self) -> dict[str, Any]:
        """The count is 0 when nothing was frozen any more."""
        if self.thaw_by is None:
            return {"count": 0}
        self.domain.agentSetResponseTimeout(THAW_SECONDS, 0)
        count = self.domain.fsThaw()
        self.thaw_by = None
        return {"count": count}

    def settle(self) -> dict[str, Any]:
        if self.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            return {}
        self._stopped = True
        self.domain.suspend()
        self.domain.resume()
        self._stopped = False
        return {}

    def undo(self) -> bool:
        """Try once; whether nothing is left to be undone."""
        try:
            if not self.domain.isActive():
                return self._nothing_left()
            if self._stopped and self.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                self.domain.resume()
            self._stopped = False
            self.thaw()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return self._nothing_left()
            try:
                self.domain = self._find()  # libvirtd may have been started anew
            except libvirt.libvirtError:
                return False
            return False
        return True

    def _nothing_left(self) -> bool:
        self.thaw_by, self._stopped = None, False
        return True

    def overdue(self) -> float | None:
        """Seconds until the limit; None: nothing is frozen."""
        return None if self.thaw_by is None else max(0.0, self.thaw_by - time.monotonic())


def main() -> int:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        guarding = Guarding(sys.argv[1], sys.argv[2], float(sys.argv[3]))
    except libvirt.libvirtError as error:
        _say({"error": str(error)})
        return 1
    _say({})
    serve(guarding)
    end = time.monotonic() + PATIENCE_SECONDS
    while not guarding.undo():
        if time.monotonic() > end:
            return 1
        time.sleep(_RETRY_SECONDS)
    return 0


def serve(guarding: Guarding) -> None:
    """Until the input ends."""
    acts = {"freeze": guarding.freeze, "thaw": guarding.thaw, "settle": guarding.settle}
    waiting = b""
    while True:
        wait = guarding.overdue()
        ready, _, _ = select.select([0], [], [], wait)
        if not ready:
            if not guarding.undo():
                time.sleep(_RETRY_SECONDS)
            continue
        read = os.read(0, 4096)
        if not read:
            return
        *words, waiting = (waiting + read).split(b"\n")
        for word in words:
            try:
                _say(acts[word.decode()]())
            except libvirt.libvirtError as error:
                _say({"error": str(error)})


def _say(answer: dict[str, Any]) -> None:
    try:
        os.write(1, json.dumps(answer).encode() + b"\n")
    except BrokenPipeError:
        return  # the agent is gone, and the end of the input says so


if __name__ == "__main__":
    sys.exit(main())

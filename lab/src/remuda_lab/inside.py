"""Shell scripts inside a guest, run by its own agent: what its network interface does not offer."""

from __future__ import annotations

import base64
import json
from typing import Any

from remuda_lab.errors import LabError
from remuda_lab.mesh import Guest, Mesh
from remuda_lab.waiting import wait_for


def in_guest(mesh: Mesh, guest: Guest, script: str, *, timeout: float = 180.0) -> str:
    """Standard output of a script for ``/bin/sh``; ``timeout`` in seconds. Raises LabError when it fails,
    WaitTimeout when it does not end.
    """
    arguments = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
    started = ask_agent(mesh, guest, "guest-exec", arguments)

    def status() -> dict[str, Any] | None:
        seen = ask_agent(mesh, guest, "guest-exec-status", {"pid": started["pid"]})
        return seen if seen["exited"] else None

    ended = wait_for(f"{script!r} ends in {guest.name}", status, timeout=timeout, interval=0.2)
    output = {name: base64.b64decode(ended.get(f"{name}-data", "")).decode() for name in ("out", "err")}
    if ended.get("exitcode") != 0:
        raise LabError(f"{script!r} in {guest.name} ended with {ended.get('exitcode')}: {output}")
    return output["out"]


def ask_agent(mesh: Mesh, guest: Guest, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One command of the QEMU guest agent protocol; what it returns. Raises CommandFailed."""
    words = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(mesh.lab.host(guest.host()).virsh("qemu-agent-command", guest.uid, words))
    found: dict[str, Any] = answer["return"]
    return found

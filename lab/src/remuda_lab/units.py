"""The other side of the supervisor: start, stop, signal and look at units of the fabric or of a host."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remuda_lab.errors import LabError
from remuda_lab.processes import ProcessRef, pid_inside, processes_in_namespace
from remuda_lab.supervisor import socket_path
from remuda_lab.waiting import wait_for


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSpec:
    """A process that a supervisor shall run. ``log`` is a path inside the namespace."""

    name: str
    argv: Sequence[str]
    log: str
    env: Mapping[str, str] = field(default_factory=dict)
    restart_seconds: float | None = None
    """Start it again this long after it ended by itself; None: leave it down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStatus:
    """What a supervisor says of a unit. ``pid`` is the machine's pid, None when it is not running."""

    name: str
    pid: int | None
    starts: int
    status: int | None
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """The units below one pid 1 (given as the machine's pid)."""

    init: ProcessRef
    where: str

    def start(self, spec: UnitSpec) -> None:
        """Raises LabError when the unit runs already or its program does not exist."""
        self._ask(
            {
                "do": "start",
                "unit": {
                    "name": spec.name,
                    "argv": list(spec.argv),
                    "env": dict(spec.env),
                    "log": spec.log,
                    "restart_seconds": spec.restart_seconds,
                },
            }
        )

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a unit's process. Raises LabError when it is not running."""
        self._ask({"do": "signal", "name": name, "signal": int(number)})

    def stop(self, name: str, *, grace: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after ``grace`` seconds; not restarted."""
        self._ask({"do": "stop", "name": name})
        try:
            self._wait_down(name, grace)
        except LabError:
            self._ask({"do": "signal", "name": name, "signal": int(signal.SIGKILL)})
            self._wait_down(name, 5)

    def status(self) -> dict[str, UnitStatus]:
        """Every unit ever started here, by name."""
        answer = self._ask({"do": "status"})
        inner = {report["pid"] for report in answer["units"].values()} - {None}
        outer = self._outer_pids(inner) if inner else {}
        return {
            name: UnitStatus(
                name=name,
                pid=outer.get(report["pid"]),
                starts=report["starts"],
                status=report["status"],
                log=report["log"],
            )
            for name, report in answer["units"].items()
        }

    def running(self, name: str) -> bool:
        """Whether the unit has a process."""
        report = self._ask({"do": "status"})["units"].get(name)
        return report is not None and report["pid"] is not None

    def wait_ready(self, *, timeout: float = 10.0) -> None:
        """Wait until the supervisor answers. Raises WaitTimeout, or LabError when it has ended."""

        def answers() -> bool:
            self._ask({"do": "status"})
            return True

        def answers_or_ended() -> bool:
            return not self.init.alive() or answers()

        wait_for(f"the supervisor of {self.where} answers", answers_or_ended, timeout=timeout, interval=0.01)
        if not self.init.alive():
            raise LabError(f"the supervisor of {self.where} ended while it was set up")

    def _wait_down(self, name: str, timeout: float) -> None:
        wait_for(f"{name} of {self.where} ends", lambda: not self.running(name), timeout=timeout)

    def _outer_pids(self, inner: set[int]) -> dict[int, int]:
        pids = {}
        for outer in processes_in_namespace(self.init.pid):
            inside = pid_inside(outer)
            if inside in inner:
                pids[inside] = outer
        return pids

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if not self.init.alive():
            raise LabError(f"{self.where} is not running")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            try:
                # Through the process's root: short enough for a socket address, and reachable while cut off.
                connection.connect(f"/proc/{self.init.pid}/root{socket_path(self.where)}")
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as stream:
                    line = stream.readline()
            except OSError as error:
                raise LabError(f"the supervisor of {self.where} does not answer: {error}") from error
        if not line:
            raise LabError(f"the supervisor of {self.where} refused {request}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LabError(f"{self.where}: {answer['error']}")
        return answer

"""Pid 1 of the fabric and of every host: sets the namespace up, runs units, reaps, answers questions.

    python -m remuda_lab.supervisor --lab DIR --name host1 --config FILE [--tether FD]

It knows nothing of Remuda. Requests come one per connection on a unix socket, a JSON object in a line each
way:

    {"do": "start", "unit": {"name", "argv", "env", "log", "restart_seconds"}}
    {"do": "signal", "name", "signal"}     a numeric signal to the unit's process; SIGKILL counts as a crash
    {"do": "stop", "name"}                 SIGTERM, and no restart
    {"do": "status"}                       {"units": {name: {...}}}

Only the standard library is imported: this process starts once per host and must be up in a few milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_DEFAULT_SIGNALS = [
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGCHLD,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
]


def socket_path(name: str) -> str:
    """Where the supervisor of ``name`` listens, inside its namespace.

    The name is in it because a host that has not mounted its own /run yet still shows the fabric's.
    """
    return f"/run/remuda-lab-{name}.sock"


@dataclass(slots=True)
class Unit:
    """One process that is wanted, and what became of it."""

    name: str
    argv: list[str]
    env: dict[str, str]
    log: str
    restart_seconds: float | None
    wanted: bool = True
    pid: int | None = None
    starts: int = 0
    last_status: int | None = None
    restart_at: float | None = None

    def report(self) -> dict[str, object]:
        """``status`` is as subprocess gives it: negative for the signal that ended the process."""
        return {
            "pid": self.pid,
            "starts": self.starts,
            "wanted": self.wanted,
            "status": self.last_status,
            "log": self.log,
        }


@dataclass(slots=True)
class Supervisor:
    """Units by name."""

    units: dict[str, Unit] = field(default_factory=dict)

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request; an ``error`` in the answer is a sentence."""
        match request.get("do"):
            case "start":
                return self._start(request["unit"])
            case "signal":
                return self._signal(request["name"], int(request["signal"]))
            case "stop":
                return self._stop(request["name"])
            case "status":
                return {"units": {name: unit.report() for name, unit in self.units.items()}}
            case other:
                return {"error": f"unknown request {other!r}"}

    def _start(self, wanted: dict[str, Any]) -> dict[str, Any]:
        known = self.units.get(wanted["name"])
        if known is not None and known.pid is not None:
            return {"error": f"{known.name} runs already, as pid {known.pid}"}
        unit = Unit(
            name=wanted["name"],
            argv=list(wanted["argv"]),
            env=dict(wanted["env"]),
            log=wanted["log"],
            restart_seconds=wanted["restart_seconds"],
            starts=known.starts if known else 0,
        )
        self.units[unit.name] = unit
        try:
            self._spawn(unit)
        except OSError as error:
            del self.units[unit.name]
            return {"error": f"{unit.argv[0]}: {error.strerror}"}
        return {"pid": unit.pid}

    def _spawn(self, unit: Unit) -> None:
        env = {**os.environ, **unit.env}
        Path(unit.log).parent.mkdir(parents=True, exist_ok=True)
        unit.pid = os.posix_spawnp(
            unit.argv[0],
            unit.argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, unit.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=_DEFAULT_SIGNALS,
        )
        unit.starts += 1
        unit.restart_at = None

    def _signal(self, name: str, number: int) -> dict[str, Any]:
        unit = self.units.get(name)
        if unit is None or unit.pid is None:
            return {"error": f"{name} is not running"}
        os.kill(unit.pid, number)
        return {"pid": unit.pid}

    def _stop(self, name: str) -> dict[str, Any]:
        unit = self.units.get(name)
        if unit is None:
            return {"error": f"there is no unit {name}"}
        unit.wanted = False
        unit.restart_at = None
        if unit.pid is not None:
            os.kill(unit.pid, signal.SIGTERM)
            # A stopped process would sleep through its SIGTERM.
            os.kill(unit.pid, signal.SIGCONT)
        return {"pid": unit.pid}

    def reap(self) -> None:
        """Collect every dead child: units, and the orphans that fall to pid 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for unit in self.units.values():
                if unit.pid == pid:
                    unit.pid = None
                    unit.last_status = os.waitstatus_to_exitcode(status)
                    if unit.wanted and unit.restart_seconds is not None:
                        unit.restart_at = time.monotonic() + unit.restart_seconds

    def restart_due(self) -> float | None:
        """Start what is due; return the seconds until the next one, or None."""
        now = time.monotonic()
        pending = []
        for unit in self.units.values():
            if unit.restart_at is None:
                continue
            if unit.restart_at <= now:
                self._spawn(unit)
            else:
                pending.append(unit.restart_at - now)
        return min(pending, default=None)


def serve(supervisor: Supervisor, listener: socket.socket, *, tether: int | None) -> None:
    """Answer until the tether (a pipe whose other end its owner holds) breaks; without one, for ever."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ, "request")
        selector.register(wake_read, selectors.EVENT_READ, "child")
        if tether is not None:
            selector.register(tether, selectors.EVENT_READ, "tether")
        while True:
            for key, _ in selector.select(supervisor.restart_due()):
                if key.data == "tether":
                    return
                if key.data == "child":
                    os.read(wake_read, 4096)
                else:
                    _answer(supervisor, listener)
            supervisor.reap()


def _answer(supervisor: Supervisor, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        # A client that says nothing must not stop the only thread of pid 1.
        connection.settimeout(2)
        try:
            with connection.makefile("rb") as stream:
                request = json.loads(stream.readline())
            supervisor.reap()
            answer = supervisor.handle(request)
            connection.sendall(json.dumps(answer).encode() + b"\n")
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"remuda-lab supervisor: bad request: {error!r}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the setup commands of the configuration, then serve."""
    parser = argparse.ArgumentParser(prog="remuda_lab.supervisor")
    parser.add_argument(
        "--lab", required=True, help="the lab's directory; makes the process findable by a sweep"
    )
    parser.add_argument("--name", required=True)
    parser.add_argument("--config", required=True, type=Path, help='JSON: {"setup": [[command, ...], ...]}')
    parser.add_argument("--tether", type=int, help="inherited pipe: end when its other end closes")
    arguments = parser.parse_args()
    os.chdir("/")
    if arguments.tether is not None:
        os.set_inheritable(arguments.tether, False)
    for command in json.loads(arguments.config.read_text())["setup"]:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        if done.returncode != 0:
            sys.exit(f"remuda-lab supervisor {arguments.name}: {' '.join(command)}: {done.stderr.strip()}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path(arguments.name))
        Path(socket_path(arguments.name)).chmod(0o600)
        listener.listen(16)
        serve(Supervisor(), listener, tether=arguments.tether)


if __name__ == "__main__":
    main()

"""What a lab must remember between two commands: a JSON file in its directory."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from remuda_lab.errors import LabError
from remuda_lab.layout import LabPaths
from remuda_lab.processes import ProcessRef


@dataclass(slots=True, kw_only=True)
class LabState:
    """Process identities are the machine's. ``hosts`` holds running hosts only."""

    host_count: int = 0
    fabric: ProcessRef | None = None
    hosts: dict[str, ProcessRef] = field(default_factory=dict)
    forwards: dict[str, int] = field(default_factory=dict)
    """Port on 127.0.0.1 of the machine, by service name."""
    tcp: bool = False
    """libvirt listens on plain TCP as well."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> LabState:
        raw = json.loads(text)
        return cls(
            host_count=raw["host_count"],
            fabric=ProcessRef(**raw["fabric"]) if raw["fabric"] else None,
            hosts={name: ProcessRef(**ref) for name, ref in raw["hosts"].items()},
            forwards=raw["forwards"],
            tcp=raw["tcp"],
        )


def load_state(paths: LabPaths) -> LabState:
    """An empty state when there is none. Raises LabError when the file cannot be read as one."""
    try:
        return LabState.from_json(paths.state.read_text())
    except FileNotFoundError:
        return LabState()
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{paths.state} is damaged ({error}); `remuda-lab down --force` removes the lab"
        ) from error


def save_state(paths: LabPaths, state: LabState) -> None:
    """Replace the file in one step."""
    paths.root.mkdir(parents=True, exist_ok=True)
    beside = paths.state.with_suffix(".new")
    beside.write_text(state.to_json())
    beside.rename(paths.state)


@contextmanager
def lab_lock(path: Path) -> Iterator[None]:
    """One command at a time changes a lab. Raises LabError when another one holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LabError(f"another remuda-lab command (see `fuser {path}`) is changing this lab") from error
        os.set_inheritable(file.fileno(), False)
        yield

"""What is measured, as data that goes to a JSON file and comes back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remuda_bench.migration.plan import Kind, Tool

VERSION = 1
"""Of the JSON document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One live migration. Moments are milliseconds after ``requested``, on one machine's one clock."""

    run: int
    """From 1; 0 is the warm-up."""
    tool: Tool
    source: str
    target: str
    job_started_ms: float
    """The call to libvirt."""
    source_paused_ms: float
    target_resumed_ms: float
    job_ended_ms: float
    """The source's libvirt has ended its QEMU: its last act before its call returns."""
    done_ms: float
    """The user knows."""
    downtime_ms: int | None
    """As libvirt has it."""
    elapsed_ms: int | None
    """The job's duration as libvirt has it."""
    memory_bytes: int
    disk_bytes: int
    iterations: int
    """Passes over memory."""
    longest_gap_ms: float
    """Between two answers to a ping, or to the end of the measurement."""
    pings_lost: int
    cpu_seconds: Mapping[str, float]
    """By process, until half a second after the end."""
    window_seconds: float
    """How long processor time was counted."""
    admitted_ms: float | None = None
    """Remuda: the answer to the request is there."""
    steps_ms: Mapping[str, float] = field(default_factory=dict)
    """Remuda: the operation's steps in order, from its journal."""

    @property
    def before_ms(self) -> float:
        """From the request to the call to libvirt."""
        return self.job_started_ms

    @property
    def job_ms(self) -> float:
        return self.job_ended_ms - self.job_started_ms

    @property
    def after_ms(self) -> float:
        """From the end of libvirt's job until the user knows."""
        return self.done_ms - self.job_ended_ms

    @property
    def overhead_ms(self) -> float:
        return self.before_ms + self.after_ms

    @property
    def pause_ms(self) -> float:
        """By libvirt's events: between the pause at the source and the resume at the target."""
        return self.target_resumed_ms - self.source_paused_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Processor time that is used while nothing happens."""

    seconds: float
    cpu_seconds: Mapping[str, float]

    def rate(self, name: str) -> float:
        """Processor seconds per second."""
        return self.cpu_seconds.get(name, 0.0) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run of the program."""

    date: str
    machine: Mapping[str, str]
    load: Mapping[str, float]
    """Load average over a minute, at the beginning and at the end."""
    settings: Mapping[str, Any]
    took_seconds: float
    commands: Mapping[Kind, str]
    """The raw tool's command, by kind."""
    moves: Mapping[Kind, Sequence[Move]]
    idle: Idle
    resident_bytes: Mapping[str, int]

    def counted(self, kind: Kind, tool: Tool) -> list[Move]:
        """In the order of the runs, without the warm-up."""
        found = [move for move in self.moves[kind] if move.tool is tool and move.run > 0]
        return sorted(found, key=lambda move: move.run)

    def warm_up(self, kind: Kind, tool: Tool) -> Move | None:
        return next((move for move in self.moves[kind] if move.tool is tool and move.run == 0), None)


def to_json(figures: Figures) -> str:
    """Rounded to what can be measured, so that two documents can be compared by eye."""
    raw = {"version": VERSION, **dataclasses.asdict(figures)}
    return json.dumps(_rounded(raw), indent=1) + "\n"


def from_json(text: str) -> Figures:
    """Raises ValueError for a document that is not one of ours."""
    raw = json.loads(text)
    if not isinstance(raw, dict) or raw.pop("version", None) != VERSION:
        raise ValueError(f"not figures of version {VERSION}")
    try:
        moves = {
            Kind(kind): [Move(**{**move, "tool": Tool(move["tool"])}) for move in found]
            for kind, found in raw.pop("moves").items()
        }
        commands = {Kind(kind): command for kind, command in raw.pop("commands").items()}
        return Figures(moves=moves, commands=commands, idle=Idle(**raw.pop("idle")), **raw)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not figures of a migration bench: {error!r}") from error


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value

"""What was done about a running migration by commands and by the ladder, kept on disk as it is done.

A restarted agent goes on from there: it climbs no rung twice, puts a cap into force that still waits for the
memory phase, tells the whole timeline again, and answers a command that is repeated without acting twice.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.message import DecodeError
from remuda.agent.v1.migration_pb2 import MigrateRequest
from remuda.compute.v1.migration_pb2 import CommandResult, MigrationMilestone

_log = structlog.get_logger(__name__)

LARGEST_TIMELINE = 128
"""Milestones; later ones are not noted."""
_REMEMBERED = 64
"""Answers; the oldest are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A command and what it was told."""

    request: MigrateRequest
    result: CommandResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """Seconds count from the beginning of the job."""

    rung: int = 0
    since: float = 0.0
    downtime_ms: int = 0
    """In force; 0: as at the start."""
    max_downtime_ms: int = 0
    """Commanded; 0: the request's."""
    cap_mib_s: int | None = None
    """Commanded; None: the request's."""
    cap_waits: bool = False
    """For the memory phase."""
    post_copy_tried: bool = False
    """QEMU may be in post-copy although nobody has seen it."""


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Of one migration. Every change is on disk when the call returns; a few microseconds of work."""

    path: Path
    entries: Entries = field(default_factory=Entries)
    answers: dict[str, Answered] = field(default_factory=dict)
    milestones: list[MigrationMilestone] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> "Ledger":
        """What is there; nothing, or what cannot be read, is an empty one."""
        ledger = cls(path=path)
        try:
            ledger._load(json.loads(path.read_text()))
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError, DecodeError):
            # Written by rename, so this is damage from outside. At worst a rung is taken again.
            _log.error("a migration's ledger cannot be read", path=str(path))
        return ledger

    def note(self, **changes: Any) -> None:
        """Fields of Entries."""
        self.entries = replace(self.entries, **changes)
        self._write()

    def answer(self, answered: Answered) -> None:
        """Anonymous commands cannot be repeated, so their answers are not kept."""
        if answered.request.command_id:
            self.answers[answered.request.command_id] = answered
            while len(self.answers) > _REMEMBERED:
                del self.answers[next(iter(self.answers))]
            self._write()

    def tell(self, milestone: MigrationMilestone) -> None:
        self.milestones.append(milestone)
        self._write()

    def _load(self, raw: Mapping[str, Any]) -> None:
        known = {one.name for one in fields(Entries)}
        entries = Entries(**{name: value for name, value in raw["entries"].items() if name in known})
        answers = {
            identifier: Answered(
                request=MigrateRequest.FromString(bytes.fromhex(request)),
                result=CommandResult.FromString(bytes.fromhex(result)),
            )
            for identifier, (request, result) in raw["answers"].items()
        }
        milestones = [MigrationMilestone.FromString(bytes.fromhex(text)) for text in raw["milestones"]]
        self.entries, self.answers, self.milestones = entries, answers, milestones

    def _write(self) -> None:
        raw = {
            "entries": {one.name: getattr(self.entries, one.name) for one in fields(Entries)},
            "answers": {
                identifier: [one.request.SerializeToString().hex(), one.result.SerializeToString().hex()]
                for identifier, one in self.answers.items()
            },
            "milestones": [one.SerializeToString().hex() for one in self.milestones],
        }
        draft = self.path.with_suffix(".steering-new")
        draft.write_text(json.dumps(raw))
        draft.replace(self.path)

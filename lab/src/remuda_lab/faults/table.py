"""The fault table: one row per crash that was made, as its test saw it end. Pure but for its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from remuda_lab.faults.outcome_rows import OUTCOME_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one migration that was disturbed."""

    test: str
    """path::name of the test that did it."""
    fault: str
    point: str
    """Where in the migration."""
    result: str
    """State of the operation at its end, with the reason when it failed."""
    outcomes: tuple[str, ...]
    """What `decide_outcome` said from the fault on, in order, repetitions left out."""
    guest: str
    """Who has it at the end."""
    seconds: float
    """From the fault, or the repair where the operation can only wait for that, to the operation's end."""
    silence: float
    """Longest time without an answer to a ping, in seconds."""
    memory: str
    """The counter in the guest's memory before and after."""
    copies: int
    """Most copies that ran at the same time."""
    left: str
    """What was left on hosts and in etcd once all debts were paid."""
    rows: tuple[int, ...]
    """Indices of OUTCOME_ROWS that were seen in the course of the move."""

    @property
    def produced(self) -> tuple[int, ...]:
        """Those whose outcome was judged after the fault: before it every move shows a guest that stays."""
        return tuple(index for index in self.rows if OUTCOME_ROWS[index].outcome in self.outcomes)

    @property
    def name(self) -> str:
        """The test's, without its path."""
        return self.test.rpartition("::")[2]


def append(file: Path, row: Row) -> None:
    """One JSON object a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        out.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def read(file: Path) -> list[Row]:
    """The last row of every test, in the order in which they ran. Raises OSError, TypeError, ValueError."""
    rows: dict[str, Row] = {}
    for line in file.read_text().splitlines():
        fields = json.loads(line)
        row = Row(**{**fields, "outcomes": tuple(fields["outcomes"]), "rows": tuple(fields["rows"])})
        rows[row.test] = row
    return list(rows.values())


def render(rows: Sequence[Row]) -> str:
    """Both tables in Markdown: what became of every fault, and which outcomes were seen."""
    faults = [
        _cells(
            row.fault,
            row.point,
            row.result,
            " → ".join(row.outcomes),
            row.guest,
            f"{row.seconds:.1f} s",
            f"{row.silence:.1f} s",
            row.memory,
            str(row.copies),
            row.left,
            f"`{row.name}`",
        )
        for row in rows
    ]
    outcomes = [
        _cells(
            wanted.source,
            wanted.target,
            f"`{wanted.outcome}`",
            wanted.means,
            ", ".join(f"`{row.name}`" for row in rows if index in row.produced) or "not produced",
        )
        for index, wanted in enumerate(OUTCOME_ROWS)
    ]
    return "\n".join(
        [
            *_head(
                "fault",
                "point of the move",
                "operation",
                "outcomes judged",
                "who has the guest",
                "ended after",
                "guest silent",
                "memory counter",
                "copies at once",
                "left over",
                "test",
            ),
            *faults,
            "",
            "### Outcomes that were produced",
            "",
            *_head("source shows", "target shows", "outcome", "what follows", "tests"),
            *outcomes,
            "",
        ]
    )


def _cells(*texts: str) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _head(*names: str) -> tuple[str, str]:
    return _cells(*names), "|" + "---|" * len(names)

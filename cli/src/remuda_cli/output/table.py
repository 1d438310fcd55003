"""Columns, aligned with spaces: the same on a terminal and in a pipe, so that grep and awk work on both."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Label = Callable[[str], str]
"""Resource name of a host to what people call it."""


@dataclass(frozen=True, slots=True)
class Column:
    header: str
    cell: Callable[[Any, Label], str]
    wide: bool = False
    """Only with -o wide."""


def chosen(columns: Sequence[Column], *, wide: bool) -> list[Column]:
    return [column for column in columns if wide or not column.wide]


def cells(columns: Sequence[Column], message: Any, label: Label) -> list[str]:
    return [_printable(column.cell(message, label)) or "-" for column in columns]


def aligned(rows: Iterable[Sequence[str]], widths: Sequence[int] | None = None) -> list[str]:
    """`widths`: at least that wide, so that rows printed later stand below earlier ones."""
    kept = list(rows)
    if not kept:
        return []
    own = [max(len(row[i]) for row in kept) for i in range(len(kept[0]))]
    if widths is not None:
        own = [max(a, b) for a, b in zip(own, widths, strict=True)]
    return ["  ".join(cell.ljust(own[i]) for i, cell in enumerate(row)).rstrip() for row in kept]


def table(columns: Sequence[Column], messages: Iterable[Any], label: Label) -> list[str]:
    """Header and rows; also the header alone, so that an empty list shows what it would hold."""
    header = [column.header for column in columns]
    return aligned([header, *(cells(columns, message, label) for message in messages)])


def _printable(text: str) -> str:
    """A guest or a label must not move the cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)

"""In which order which tool moves its guest where. Pure.

Round 0 is the warm-up. Both tools go the same way in a round, and back in the next; which of them goes first
follows the Thue-Morse sequence, so that neither a drift of the machine nor a direction favours one of them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

HOSTS = ("host1", "host2")


class Tool(enum.StrEnum):
    """Who moves."""

    REMUDA = "remuda"
    VIRSH = "virsh"


class Kind(enum.StrEnum):
    """What moves: the disks too, or memory only."""

    BLOCK = "block"
    SHARED = "shared"

    @property
    def pool(self) -> str:
        """The lab's pool on which the guests are."""
        return "local" if self is Kind.BLOCK else "shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One move by each tool."""

    number: int
    source: str
    target: str
    order: tuple[Tool, Tool]

    @property
    def warm_up(self) -> bool:
        """Not counted."""
        return self.number == 0


def rounds(runs: int, *, warm_up: bool = True) -> Iterator[Round]:
    """``runs`` counted rounds, both guests on the first host at the start."""
    for turn, number in enumerate(range(0 if warm_up else 1, runs + 1)):
        source, target = HOSTS if turn % 2 == 0 else reversed(HOSTS)
        first_is_virsh = turn.bit_count() % 2 == 1
        order = (Tool.VIRSH, Tool.REMUDA) if first_is_virsh else (Tool.REMUDA, Tool.VIRSH)
        yield Round(number=number, source=source, target=target, order=order)

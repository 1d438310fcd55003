"""Who may make, ask for or remove a base image: one at a time, within this agent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from weakref import WeakValueDictionary


class BaseTurns:
    """By base image. Other hosts that share a pool are not held up: nothing is removed there."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    def turn(self, path: Path) -> asyncio.Lock:
        """Of the base image that a file of its directory belongs to: all begin with its digest. What begins
        with a dot belongs to none, and shares a turn.
        """
        return self._turns.setdefault(path.parent / path.name.partition(".")[0], asyncio.Lock())

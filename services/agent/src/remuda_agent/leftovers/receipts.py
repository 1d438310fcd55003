"""Receipts of what was removed: JSON lines in the state directory, each durable before anything else is done.

A line is written before the removal ("removing") and another after it ("removed" or "stays"): after a crash
in between the first one says what may be gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from remuda_core.images.disk import sync_directory

KEPT = 1000
"""Lines per file; there are two files, the older one is dropped when the newer one is full."""


class Receipts:
    """Blocking. One writer per host: Sweep, which removes one thing after another."""

    def __init__(self, directory: Path, *, kept: int = KEPT) -> None:
        self.path = directory / "receipts.jsonl"
        self.older = directory / "receipts.older.jsonl"
        self._kept = kept

    def write(self, what: Mapping[str, object]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._lines() >= self._kept:
            self.path.replace(self.older)
        line = json.dumps({"time": datetime.now(UTC).isoformat(), **what}, ensure_ascii=False)
        with self.path.open("a") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self.path.parent)

    def _lines(self) -> int:
        try:
            with self.path.open("rb") as file:
                return sum(1 for _ in file)
        except FileNotFoundError:
            return 0

"""The circumstances of a measurement, noted around it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from remuda_bench.images.figures import Taken

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Taking:
    """Begins when it is made."""

    _began: float = field(default_factory=time.monotonic)
    _load: float = field(default_factory=lambda: os.getloadavg()[0])

    def end(self, *, machine: Mapping[str, str], runs: int) -> Taken:
        return Taken(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine,
            load={"at the start": self._load, "at the end": os.getloadavg()[0]},
            took_seconds=time.monotonic() - self._began,
            runs=runs,
        )

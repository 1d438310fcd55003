"""The tail of guests' serial consoles."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from remuda_core.ids import InstanceId


@dataclass(frozen=True, slots=True)
class ConsoleTail:
    """The last bytes of a log, unchanged."""

    output: bytes
    truncated: bool
    """The log holds more."""


class ConsoleReader:
    """Reads what QEMU appends to `<directory>/<instance>.console`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def tail(self, instance: InstanceId, max_bytes: int) -> ConsoleTail:
        """Empty when the guest has never written here, for example because it came by migration just now."""
        return await asyncio.to_thread(self._tail, self._directory / f"{instance}.console", max_bytes)

    @staticmethod
    def _tail(path: Path, max_bytes: int) -> ConsoleTail:
        try:
            with path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - max_bytes))
                return ConsoleTail(log.read(max_bytes), truncated=size > max_bytes)
        except FileNotFoundError:
            return ConsoleTail(b"", truncated=False)

"""How far a transfer is: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from remuda_cli.output.units import human_bytes, human_rate, human_seconds

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_SECONDS = 5.0


class Meter:
    """`start`: bytes that were there before; they do not count for the rate."""

    def __init__(
        self,
        title: str,
        *,
        total: int,
        start: int = 0,
        write: Callable[[str], None],
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._total = total
        self._start = start
        self._write = write
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._clock = clock
        self._began = self._printed = clock()
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self._terminal:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._progress.add_task(self._title, total=self._total, completed=self._start)
            self._progress.start()
        else:
            going_on = f", going on at {human_bytes(self._start)}" if self._start else ""
            self._write(f"{self._title}: {human_bytes(self._total)}{going_on}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def expect(self, total: int) -> None:
        """The size is another one than was thought."""
        self._total = total
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], total=total)

    def at(self, done: int) -> None:
        """`done`: bytes in all."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=done)
            return
        now = self._clock()
        if now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            self._write(self.line(done, now - self._began))

    def line(self, done: int, seconds: float) -> str:
        rate = (done - self._start) / seconds if seconds > 0 else 0.0
        text = f"{self._title}: {human_bytes(done)} of {human_bytes(self._total)}, {human_rate(int(rate))}"
        if rate > 0 and done < self._total:
            text += f", {human_seconds((self._total - done) / rate)} left"
        return text

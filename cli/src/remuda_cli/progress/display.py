"""Where progress goes: a terminal that redraws, plain lines on stderr, or NDJSON on stdout."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from remuda.compute.v1 import operation_pb2

from remuda_cli.output.columns import operation_metadata
from remuda_cli.output.render import ndjson
from remuda_cli.output.table import Label
from remuda_cli.output.words import last_part
from remuda_cli.progress.fresh import FreshProgress
from remuda_cli.progress.lines import Metadata, Subject, elapsed, milestone, plain_line, title

PLAIN_SECONDS = (1.0, 10.0)
"""Between two plain lines that nothing makes necessary: at first, and at most. Lines get rarer the longer an
operation takes, so that neither a short one says nothing nor a long one fills a log."""
_PART_OF_ELAPSED = 0.2

SubjectOf = Callable[[Metadata], Subject]


class Display(Protocol):
    def update(self, message: operation_pb2.WatchOperationResponse) -> None:
        """One message of WatchOperation."""

    def note(self, text: str) -> None:
        """What the client itself has to say, for example that it reconnects."""

    def close(self) -> None:
        """Nothing more comes; the next output may go below."""


class PlainDisplay:
    """A line per change of phase, and one now and then."""

    def __init__(
        self,
        subject_of: SubjectOf,
        *,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        every_seconds: tuple[float, float] = PLAIN_SECONDS,
        label: Label = last_part,
    ) -> None:
        self._subject_of = subject_of
        self._write = write
        self._clock = clock
        self._every = every_seconds
        self._label = label
        self._title = ""
        self._milestone: tuple[object, ...] = ()
        self._last = 0.0
        self._fresh = FreshProgress()

    def update(self, message: operation_pb2.WatchOperationResponse) -> None:
        metadata = self._fresh.of(operation_metadata(message.operation))
        now = self._clock()
        headline = title(metadata, self._subject_of(metadata))
        if headline != self._title:
            self._title = headline
            self._write(headline)
        changed = milestone(metadata)
        took = elapsed(metadata, now)
        least, most = self._every
        pause = min(most, max(least, took * _PART_OF_ELAPSED))
        if message.operation.done or (changed == self._milestone and now - self._last < pause):
            return
        self._milestone, self._last = changed, now
        self._write(plain_line(metadata, took, self._label))

    def note(self, text: str) -> None:
        self._write(text)

    def close(self) -> None:
        pass


class NdjsonDisplay:
    """Every message of WatchOperation as it came, one per line."""

    def __init__(self, *, write: Callable[[str], None], note: Callable[[str], None]) -> None:
        self._write = write
        self._note = note

    def update(self, message: operation_pb2.WatchOperationResponse) -> None:
        self._write(ndjson(message))

    def note(self, text: str) -> None:
        self._note(text)

    def close(self) -> None:
        pass


class TerminalDisplay:
    """Redraws in place; the clocks in it run on between two messages."""

    def __init__(
        self, subject_of: SubjectOf, label: Label, footer: Callable[[], Sequence[str]] | None = None
    ) -> None:
        from rich.console import Console, Group, RenderableType
        from rich.live import Live
        from rich.text import Text

        from remuda_cli.progress.panel import operation_panel

        self._subject_of = subject_of
        self._metadata: Metadata | None = None
        self._subject = Subject(target="")
        self._text = ""
        self._fresh = FreshProgress()

        def draw() -> RenderableType:
            if self._metadata is None:
                return Text(self._text or "asking the gateway")
            panel = operation_panel(
                self._metadata, self._subject, label, now_seconds=time.time(), note=self._text
            )
            return Group(panel, *(Text(f"  {line}", style="dim") for line in footer())) if footer else panel

        self._live = Live(
            console=Console(stderr=True), get_renderable=draw, refresh_per_second=5, redirect_stdout=False
        )
        self._live.start()

    def update(self, message: operation_pb2.WatchOperationResponse) -> None:
        metadata = self._fresh.of(operation_metadata(message.operation))
        self._subject = self._subject_of(metadata)
        self._metadata = metadata
        self._text = ""

    def note(self, text: str) -> None:
        self._text = text

    def close(self) -> None:
        self._live.stop()


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def to_stdout(text: str) -> None:
    print(text, flush=True)


def choose(
    subject_of: SubjectOf,
    label: Label,
    *,
    json_lines: bool,
    footer: Callable[[], Sequence[str]] | None = None,
) -> Display:
    """Redrawing only where stderr is a terminal that can."""
    if json_lines:
        return NdjsonDisplay(write=to_stdout, note=to_stderr)
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return TerminalDisplay(subject_of, label, footer)
    return PlainDisplay(subject_of, write=to_stderr, label=label)

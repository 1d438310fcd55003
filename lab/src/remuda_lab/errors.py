"""What the lab raises: one type that a person reads, one for a command that failed."""

from __future__ import annotations

from collections.abc import Sequence


class LabError(Exception):
    """The lab cannot do what was asked; the text says what happened and what to do about it."""


class CommandFailed(LabError):
    """A child process ended with a non-zero status or ran out of time."""

    def __init__(self, argv: Sequence[str], outcome: str, output: str) -> None:
        self.argv = tuple(argv)
        self.outcome = outcome
        self.output = output
        tail = "\n".join(output.strip().splitlines()[-15:])
        super().__init__(f"`{' '.join(argv)}` {outcome}" + (f":\n{tail}" if tail else ""))


class WaitTimeout(LabError):
    """A bounded wait ended without its condition; the last status seen is in the text."""

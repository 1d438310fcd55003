"""The one exception that ends a command: what happened, why, and what to try next."""

from collections.abc import Sequence

from remuda_cli.exit_codes import ExitCode


class Failure(Exception):
    """Caught in main only."""

    def __init__(
        self,
        exit_code: ExitCode,
        message: str,
        *,
        reason: str = "",
        details: Sequence[str] = (),
        hints: Sequence[str] = (),
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
        self.reason = reason
        """UPPER_SNAKE word of the server, empty when it is the client's own."""
        self.details = tuple(details)
        """One line each: fields, violated conditions."""
        self.hints = tuple(hints)
        """Commands that a person would try next."""
        self.request_id = request_id
        """Finds the call in the services' logs."""

    def lines(self, *, debug: bool = False) -> list[str]:
        """As printed to stderr."""
        reason = f" ({self.reason})" if self.reason else ""
        lines = [f"error: {self.message}{reason}"]
        lines += [f"  {detail}" for detail in self.details]
        lines += [f"  try: {hint}" for hint in self.hints]
        if self.request_id and (debug or self.exit_code is ExitCode.FAILED):
            lines.append(f"  request id: {self.request_id}")
        return lines


class ReaderGone(Exception):
    """Nobody reads stdout any more, as in `remuda instance list | head`."""


def usage(message: str, *hints: str) -> Failure:
    return Failure(ExitCode.USAGE, message, hints=hints)

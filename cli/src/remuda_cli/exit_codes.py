"""Exit codes: interface, documented in `remuda --help`."""

from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    AUTHENTICATION = 6
    TIMED_OUT = 124
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "the operation failed",
    ExitCode.USAGE: "wrong usage",
    ExitCode.NOT_FOUND: "not found",
    ExitCode.CONFLICT: "conflict, or a precondition does not hold",
    ExitCode.UNAVAILABLE: "the service cannot be reached",
    ExitCode.AUTHENTICATION: "not authenticated, or not allowed",
    ExitCode.TIMED_OUT: "--timeout passed; the operation goes on",
    ExitCode.INTERRUPTED: "interrupted; the operation goes on",
}

"""Running a program on a file that nobody trusts: limited in memory, CPU, file size and time."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_KEPT_BYTES = 1 << 20
_TROUBLE_CHARACTERS = 300
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    memory_bytes: int
    cpu_seconds: int
    file_bytes: int
    """Largest file that it may write."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    returncode: int
    output: bytes
    """Its first mebibyte."""
    trouble: str
    """What went wrong, in one line: the limit that it hit, or what it said last."""


async def run(
    command: Sequence[str], limits: Limits, *, must_stop: Callable[[], str | None] = lambda: None
) -> Done:
    """`must_stop` is asked now and then; the program is killed for the reason that it gives.

    The limits are set by util-linux's prlimit, which becomes the program: Python code between fork and exec
    (`preexec_fn`) may deadlock in a process that has threads, and gRPC's does.
    """
    process = await asyncio.create_subprocess_exec(
        "prlimit",
        f"--as={limits.memory_bytes}",
        # The hard limit comes later: SIGKILL at once would not say why.
        f"--cpu={limits.cpu_seconds}:{limits.cpu_seconds + 5}",
        f"--fsize={limits.file_bytes}",
        "--core=0",
        "--",
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    outputs = asyncio.gather(_kept(process.stdout), _kept(process.stderr))
    try:
        stopped = await _watch(process, limits.seconds, must_stop)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # Cancelled: the scratch files are removed next, and it must not write on.
            await process.wait()
    output, errors = await outputs
    returncode = process.returncode if process.returncode is not None else -1
    return Done(returncode=returncode, output=output, trouble=stopped or _trouble(returncode, errors))


async def _watch(
    process: asyncio.subprocess.Process, seconds: float, must_stop: Callable[[], str | None]
) -> str:
    """Returns why it was killed, empty when it ended by itself."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _POLL_SECONDS)
            return ""
        reason = must_stop()
        if reason is None and asyncio.get_running_loop().time() > deadline:
            reason = f"it took more than {seconds:.0f} s"
        if reason is not None:
            process.kill()
            await process.wait()
            return reason


async def _kept(stream: asyncio.StreamReader) -> bytes:
    """The beginning; the rest is read and dropped, so that the program does not wait for us."""
    kept = bytearray()
    while piece := await stream.read(1 << 16):
        kept += piece[: _KEPT_BYTES - len(kept)]
    return bytes(kept)


def _trouble(returncode: int, errors: bytes) -> str:
    if returncode == -signal.SIGXCPU:
        return "it needs too much CPU"
    if returncode == -signal.SIGXFSZ:
        return "it is larger than it says"
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1][:_TROUBLE_CHARACTERS] if lines else f"exit status {returncode}"

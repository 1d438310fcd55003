"""Child processes: always with a time limit, always with the reason when they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from remuda_lab.errors import CommandFailed, LabError

# Debian keeps mkfs, ip and losetup out of a plain user's PATH.
_ADMIN_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def run(
    argv: Sequence[str],
    *,
    timeout: float = 60.0,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end and return its standard output.

    ``timeout`` is in seconds. ``env`` is added to the environment.
    Raises CommandFailed with both outputs when it fails or does not end in time, LabError when it is not
    installed.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            env=child_environment(env or {}),
        )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed; run lab/install-debian.sh as root") from error
    except subprocess.TimeoutExpired as error:
        # subprocess hands out bytes here even when it was asked for text.
        output: object = error.stdout
        text = output.decode(errors="replace") if isinstance(output, bytes) else str(output or "")
        raise CommandFailed(argv, f"did not end in {timeout:g} s", text) from error
    if done.returncode != 0:
        raise CommandFailed(argv, f"ended with status {done.returncode}", done.stdout + done.stderr)
    return done.stdout


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours, with the administrator's directories on the PATH, and ``extra``."""
    return {**os.environ, "PATH": search_path(), **extra}


def search_path() -> str:
    """PATH with the administrator's directories at its end."""
    have = os.environ.get("PATH", "/usr/bin:/bin").split(":")
    return ":".join([*have, *(entry for entry in _ADMIN_PATH if entry not in have)])


def find(program: str) -> Path:
    """The absolute path of an installed program. Raises LabError when it is not installed."""
    found = shutil.which(program, path=search_path())
    if found is None:
        raise LabError(f"{program} is not installed; run lab/install-debian.sh as root")
    return Path(found)

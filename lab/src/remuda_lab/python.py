"""Command lines of this environment: its interpreter and its console scripts, by absolute path."""

from __future__ import annotations

import sys
from pathlib import Path

from remuda_lab.errors import LabError


def module_command(module: str, *arguments: str) -> list[str]:
    """Run ``remuda_lab.<module>``. -P: the working directory must not shadow modules."""
    return [sys.executable, "-P", "-m", f"remuda_lab.{module}", *arguments]


def console_script(name: str) -> str:
    """The absolute path of a console script installed beside us. Raises LabError when it is not."""
    path = Path(sys.prefix) / "bin" / name
    if not path.exists():
        raise LabError(f"{path} does not exist; install the workspace with `make setup`")
    return str(path)

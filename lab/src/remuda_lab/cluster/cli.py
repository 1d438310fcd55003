"""The ``remuda`` command as somebody runs it against a lab."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remuda_lab.commands import child_environment, run
from remuda_lab.errors import CommandFailed
from remuda_lab.python import console_script


@dataclass(frozen=True, slots=True, kw_only=True)
class Cli:
    """``environment`` says where and as whom."""

    environment: Mapping[str, str]

    def run(self, *arguments: str, timeout: float = 180.0, stdin: str | None = None) -> str:
        """Standard output. Raises CommandFailed with both outputs."""
        return run(self._command(arguments), timeout=timeout, stdin=stdin, env=self.environment)

    def json(self, *arguments: str, timeout: float = 180.0) -> Any:
        """The document that ``-o json`` prints: an object, or an array for a list. Raises CommandFailed."""
        return json.loads(self.run(*arguments, "-o", "json", timeout=timeout))

    def json_lines(self, *arguments: str, timeout: float = 180.0) -> list[Any]:
        """For commands that print one document per line. Raises CommandFailed."""
        return [json.loads(line) for line in self.run(*arguments, "-o", "json", timeout=timeout).splitlines()]

    def shown(self, *arguments: str, timeout: float = 240.0) -> None:
        """Both outputs go to ours, as they come. Raises CommandFailed."""
        argv = self._command(arguments)
        try:
            status = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                env=child_environment(self.environment),
                timeout=timeout,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(argv, f"did not end in {timeout:g} s", "") from error
        if status != 0:
            raise CommandFailed(argv, f"ended with status {status}", "")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """In the background, both outputs piped; the caller owns the process."""
        return subprocess.Popen(
            self._command(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(self.environment),
        )

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [console_script("remuda"), *arguments]

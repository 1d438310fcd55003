"""One run of the command: its options, and the gateway once something is asked of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from remuda_cli.exit_codes import ExitCode
from remuda_cli.failure import Failure, usage
from remuda_cli.output.formats import Format
from remuda_cli.settings import Connection

# grpc, protobuf and rich cost 0.3 s: help and usage errors do without them.
if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

    from remuda_cli.gateway import Gateway

NAMES_AGAIN_SECONDS = 2.0
"""After hosts' names could not be read. A display asks for them several times a second."""


@dataclass(kw_only=True)
class Session:
    connection: Connection
    format: Format = Format.TABLE
    debug: bool = False
    wait: bool = True
    timeout_seconds: float | None = None
    """How long to wait for an operation; None: until it ends."""
    dry_run: bool = False
    yes: bool = False
    call_seconds: float = 30.0
    """Limit of every single call that is no stream."""
    _host_names: dict[str, str] | None = field(default=None, init=False, repr=False)
    _ask_for_names_at: float = field(default=0.0, init=False, repr=False)

    @cached_property
    def channel(self) -> grpc.Channel:
        from remuda_cli.channel import open_channel

        return open_channel(self.connection, debug=self.debug)

    @cached_property
    def gateway(self) -> Gateway:
        from remuda_cli.gateway import Gateway

        return Gateway(self.channel, project=self.connection.project, call_seconds=self.call_seconds)

    def label(self, host: str) -> str:
        """What people call hosts/{uuid}; the beginning of the UUID where that cannot be known (yet)."""
        return self._names_of_hosts().get(host) or host.rpartition("/")[2][:8]

    def _names_of_hosts(self) -> dict[str, str]:
        if self._host_names is None and time.monotonic() >= self._ask_for_names_at:
            try:
                self._host_names = {host.name: host.display_name for host in self.gateway.list_hosts()}
            except Failure as failure:
                # Only administrators may list hosts. Whatever else is in the way may pass, for example an
                # api that restarts while somebody watches a guest move.
                if failure.exit_code is ExitCode.AUTHENTICATION:
                    self._host_names = {}
                self._ask_for_names_at = time.monotonic() + NAMES_AGAIN_SECONDS
        return self._host_names or {}

    def close(self) -> None:
        if "channel" in self.__dict__:
            self.channel.close()

    def show(self, message: Message) -> None:
        from remuda_cli.output.render import one

        self._print(one(message, self.format, self.label))

    def show_all(self, kind: type[Message], messages: Sequence[Message]) -> None:
        from remuda_cli.output.render import many

        self._print(many(kind, messages, self.format, self.label))

    def print_lines(self, lines: Sequence[str]) -> None:
        """What a command lays out itself."""
        self._print(lines)

    def note(self, text: str) -> None:
        """Something that is no data."""
        print(text, file=sys.stderr, flush=True)

    def confirm(self, question: str) -> None:
        """Raises Failure (usage) unless --yes, --dry-run or a person at a terminal says so."""
        if self.yes or self.dry_run:
            return
        if not sys.stdin.isatty():
            raise usage(f"{question} Nobody is at a terminal to ask", "the same command with --yes")
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise usage("not confirmed; nothing was done")

    def _print(self, lines: Sequence[str]) -> None:
        for line in lines:
            print(line)
        sys.stdout.flush()

"""remuda migration control: the live panel with single keys."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from remuda_cli.commands.migration_commands import MoveArg
from remuda_cli.session import Session
from remuda_cli.verb import verb

if TYPE_CHECKING:
    from remuda.compute.v1 import migration_pb2

    from remuda_cli.dials import Dials
    from remuda_cli.steering import Steering

_LINES = 3
"""Answers shown below the panel."""
_LOOK_SECONDS = 0.2


def register(app: typer.Typer) -> None:
    verb(app, "control")(control)


def control(session: Session, instance: MoveArg) -> None:
    """Follow a migration and steer it with single keys: b/B bandwidth, d/D longest pause, p post-copy,
    f pause and finish, c cancel, q leave. p, f and c want to be pressed twice.
    """
    from remuda_cli import moves
    from remuda_cli.failure import usage

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise usage(
            "keys need a terminal",
            f"remuda migration set-bandwidth {instance} MIB/S",
            f"remuda migration cancel {instance}",
        )
    move = moves.find(session.gateway, instance)
    _Cockpit(session, moves.require_begun(move), move.operation, move.subject).run()


class _Cockpit:
    """Three threads: the operation is watched here, answers are read and keys are pressed beside it."""

    def __init__(self, session: Session, migration: str, operation: str, subject: str) -> None:
        from remuda_cli.dials import Dials
        from remuda_cli.steering import Steering

        self._session = session
        self._operation = operation
        self._subject = subject
        self._dials: Dials = Dials()
        self._steering: Steering = Steering(session.gateway, migration, note=self._say)
        self._said: list[str] = []
        self._words: dict[str, str] = {}
        self._rate = 0
        self._over = threading.Event()
        self._left = False

    def run(self) -> None:
        from google.longrunning import operations_pb2

        from remuda_cli.exit_codes import ExitCode
        from remuda_cli.failure import Failure
        from remuda_cli.output.words import last_part
        from remuda_cli.wait import finish

        with _single_keys():
            beside = (self._read_answers, self._read_keys)
            threads = [threading.Thread(target=target, daemon=True) for target in beside]
            for thread in threads:
                thread.start()
            try:
                watched = operations_pb2.Operation(name=self._operation)
                finish(self._session, watched, target=self._subject, footer=self._footer)
            except Failure as failure:
                if not (self._left and failure.exit_code is ExitCode.INTERRUPTED):
                    raise
                again = last_part(self._operation)
                self._session.note(f"it goes on; watch it with: remuda operation watch {again}")
            finally:
                self._over.set()
                self._steering.close()
                for thread in threads:
                    thread.join(2.0)

    def _footer(self) -> list[str]:
        from remuda_cli.dials import HELP

        return [*self._said[-_LINES:], HELP]

    def _say(self, text: str) -> None:
        self._said.append(text)

    def _read_answers(self) -> None:
        from remuda_cli.failure import Failure
        from remuda_cli.output.command_view import result_line

        try:
            for event in self._steering.events():
                if event.HasField("progress"):
                    self._rate = event.progress.throughput_bytes_per_second
                elif event.HasField("result"):
                    words = self._words.get(event.result.command_id, "command")
                    self._say(result_line(words, event.result))
        except Failure as failure:
            self._say(f"it cannot be steered: {failure.message}")

    def _read_keys(self) -> None:
        import select

        while not self._over.is_set():
            ready, _, _ = select.select([sys.stdin], [], [], _LOOK_SECONDS)
            if not ready:
                continue
            key = os.read(sys.stdin.fileno(), 1).decode(errors="replace")
            if key in ("q", ""):
                self._left = True
                # The main thread waits inside gRPC, which a signal ends, as Ctrl-C does.
                os.kill(os.getpid(), signal.SIGINT)
                return
            self._press(key)

    def _press(self, key: str) -> None:
        command, words = self._dials.press(key, now=time.monotonic(), sent_bytes_per_second=self._rate)
        if command is not None:
            self._send(command, words)
        elif words:
            self._say(words)

    def _send(self, command: migration_pb2.ControlMigrationRequest, words: str) -> None:
        import uuid

        command.command_id = str(uuid.uuid4())
        # Noted first: the answer is read by another thread.
        self._words[command.command_id] = words
        self._say(f"{words} ...")
        self._steering.send(command)


@contextmanager
def _single_keys() -> Iterator[None]:
    """Keys come at once and are not echoed; Ctrl-C stays what it is."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    # Who was started in the background ignores SIGINT, which `q` needs.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)

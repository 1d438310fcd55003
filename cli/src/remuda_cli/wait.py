"""Follows an operation to its end, over broken connections, Ctrl-C and --timeout."""

import time
from collections.abc import Callable, Sequence

import grpc
from google.longrunning import operations_pb2
from google.protobuf.message import Message
from remuda.compute.v1 import migration_pb2, operation_pb2

from remuda_cli.exit_codes import ExitCode
from remuda_cli.failure import Failure
from remuda_cli.gateway import Gateway
from remuda_cli.output.columns import operation_metadata
from remuda_cli.output.formats import Format
from remuda_cli.output.render import ndjson
from remuda_cli.output.words import last_part
from remuda_cli.progress import display as displays
from remuda_cli.progress.lines import Metadata, Subject, elapsed, outcome
from remuda_cli.rpc_failure import code_of, from_rpc_error, from_status
from remuda_cli.session import Session

SILENT_SECONDS = 60.0
"""Without any message for so long, over all reconnections, the gateway counts as unavailable."""
_RECONNECT_SECONDS = (0.2, 0.5, 1.0, 2.0)
_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def admitted(session: Session, operation: operations_pb2.Operation) -> bool:
    """Whether to wait. A dry run ends here, and so does --no-wait, with what there is to print."""
    if session.dry_run:
        placement = operation_metadata(operation).placement
        where = f"; it would go to {session.label(placement.chosen_host)}" if placement.chosen_host else ""
        session.note(f"dry run: every check passed, nothing was done{where}")
        return False
    if not session.wait:
        if session.format.for_people:
            print(operation.name)
            session.note(f"it goes on; watch it with: remuda operation watch {last_part(operation.name)}")
        else:
            session.show(operation)
        return False
    return True


def finish(
    session: Session,
    operation: operations_pb2.Operation,
    *,
    target: str,
    response: Message | None = None,
    json_lines: bool = False,
    footer: Callable[[], Sequence[str]] | None = None,
) -> operations_pb2.Operation:
    """Waits until it ends; fills `response`. The outcome goes to stderr, as a sentence. `footer`: lines that
    stand below the panel on a terminal.

    Raises Failure: FAILED with the operation's reason, TIMED_OUT, INTERRUPTED, UNAVAILABLE.
    """
    names = Subjects(session, target)
    display = displays.choose(names, session.label, json_lines=json_lines, footer=footer)
    try:
        ended = follow(session.gateway, operation.name, display, timeout_seconds=session.timeout_seconds)
    finally:
        display.close()
    metadata = operation_metadata(ended)
    if ended.HasField("error"):
        raise _failed(ended, metadata)
    migration = names.record(metadata, fresh=True)
    took = elapsed(metadata, time.time())
    session.note(outcome(metadata, names(metadata), migration, elapsed_seconds=took))
    if response is not None:
        ended.response.Unpack(response)
    return ended


def follow(
    gateway: Gateway,
    name: str,
    display: displays.Display,
    *,
    timeout_seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> operations_pb2.Operation:
    """The operation as it ended, well or not. A stream that breaks is opened again: the operation itself
    does not depend on who watches it.
    """
    try:
        return _follow(gateway, name, display, timeout_seconds=timeout_seconds, clock=clock, pause=pause)
    except KeyboardInterrupt:
        # Wherever it comes, also between asking and looking at the first answer.
        raise _interrupted(name) from None


def _follow(
    gateway: Gateway,
    name: str,
    display: displays.Display,
    *,
    timeout_seconds: float | None,
    clock: Callable[[], float],
    pause: Callable[[float], None],
) -> operations_pb2.Operation:
    deadline = None if timeout_seconds is None else clock() + timeout_seconds
    heard = clock()
    attempt = 0
    while True:
        left = None if deadline is None else max(0.001, deadline - clock())
        call = gateway.watches.WatchOperation(operation_pb2.WatchOperationRequest(name=name), timeout=left)
        try:
            for message in call:
                heard, attempt = clock(), 0
                display.update(message)
                if message.operation.done:
                    return message.operation
        except KeyboardInterrupt:
            call.cancel()
            raise
        except grpc.RpcError as error:
            _judge(error, name, deadline_passed=deadline is not None and clock() >= deadline)
            if clock() - heard > SILENT_SECONDS:
                raise from_rpc_error(error) from None
        if deadline is not None and clock() >= deadline:
            raise _timed_out(name)
        display.note("the connection broke; the operation goes on, connecting again")
        pause(_RECONNECT_SECONDS[min(attempt, len(_RECONNECT_SECONDS) - 1)])
        attempt += 1


class Subjects:
    """Names for the display; the hosts come from the migration record once there is one."""

    def __init__(self, session: Session, target: str) -> None:
        self._session = session
        self._target = target
        self._migration: migration_pb2.Migration | None = None
        self._asked: object = None

    def __call__(self, metadata: Metadata) -> Subject:
        target = self._target or last_part(metadata.target)
        migration = self.record(metadata)
        if migration is None:
            chosen = metadata.placement.chosen_host
            return Subject(target=target, target_host=self._label(chosen) if metadata.migration else "")
        return Subject(
            target=target,
            source_host=self._label(migration.source_host),
            target_host=self._label(migration.target_host),
        )

    def record(self, metadata: Metadata, *, fresh: bool = False) -> migration_pb2.Migration | None:
        """Read once more per phase until the target is known. Names are an ornament while it runs: a
        failure to read them is not reported.
        """
        if not metadata.migration:
            return None
        complete = self._migration is not None and self._migration.target_host
        if fresh or (not complete and self._asked != metadata.phase):
            self._asked = metadata.phase
            request = migration_pb2.GetMigrationRequest(name=metadata.migration)
            gateway = self._session.gateway
            try:
                self._migration = gateway.call(gateway.migrations.GetMigration, request, timeout=5.0)
            except Failure:
                return None if fresh else self._migration
        return self._migration

    def _label(self, host: str) -> str:
        return self._session.label(host) if host else ""


def print_lines(session: Session, message: Message) -> None:
    """For a command whose JSON is NDJSON."""
    if session.format is Format.JSON:
        displays.to_stdout(ndjson(message))
    else:
        session.show(message)


def _judge(error: grpc.RpcError, name: str, *, deadline_passed: bool) -> None:
    """Returns when watching again makes sense."""
    code = code_of(error)
    if deadline_passed and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        raise _timed_out(name) from None
    if code not in _BROKEN:
        raise from_rpc_error(error) from None


def _failed(operation: operations_pb2.Operation, metadata: Metadata) -> Failure:
    failure = from_status(operation.error, exit_code=ExitCode.FAILED)
    instance = last_part(metadata.target)
    hints = (*failure.hints, f"remuda operation show {last_part(operation.name)}")
    if "/instances/" in metadata.target and metadata.action != "CreateInstance":
        hints = (*hints, f"remuda instance events {instance}")
    return Failure(
        failure.exit_code,
        f"{metadata.action or operation.name} of {instance} failed: {failure.message}",
        reason=failure.reason,
        details=failure.details,
        hints=hints,
        request_id=failure.request_id or metadata.request_id,
    )


def _attach(name: str) -> tuple[str, str]:
    identifier = last_part(name)
    return f"remuda operation watch {identifier}", f"remuda operation cancel {identifier}"


def _interrupted(name: str) -> Failure:
    return Failure(ExitCode.INTERRUPTED, f"interrupted; {name} goes on", hints=_attach(name))


def _timed_out(name: str) -> Failure:
    return Failure(ExitCode.TIMED_OUT, f"--timeout passed; {name} goes on", hints=_attach(name))

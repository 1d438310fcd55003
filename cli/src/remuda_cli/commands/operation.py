"""remuda operation: what is going on, and how it went."""

from typing import Annotated

import typer

from remuda_cli.commands.arguments import OperationArg, WatchOption
from remuda_cli.output.formats import Format
from remuda_cli.session import Session
from remuda_cli.verb import seconds, verb

app = typer.Typer(no_args_is_help=True)

TimeoutOption = Annotated[str, typer.Option("--timeout", metavar="TIME", help="At most this long, e.g. 90s.")]


@verb(app, "list")
def list_(
    session: Session,
    wanted: Annotated[str, typer.Option("--filter", help="For example 'done = false'.")] = "",
    watch: WatchOption = False,
) -> None:
    """List operations."""
    from google.longrunning import operations_pb2

    from remuda_cli.watching import watch_list

    if watch:
        watch_list(session, operations_pb2.Operation, lambda: list(session.gateway.list_operations(wanted)))
    else:
        session.show_all(operations_pb2.Operation, list(session.gateway.list_operations(wanted)))


@verb(app, "show")
def show(session: Session, operation: OperationArg) -> None:
    """Show one operation: steps, hosts, placement, error."""
    from remuda_cli import resolve

    session.show(resolve.operation(session.gateway, operation))


@verb(app, "watch")
def watch(session: Session, operation: OperationArg, timeout: TimeoutOption = "") -> None:
    """Follow an operation to its end. With -o json: every message, one per line."""
    _follow(session, operation, timeout, json_lines=session.format is Format.JSON)


@verb(app, "wait")
def wait(session: Session, operation: OperationArg, timeout: TimeoutOption = "") -> None:
    """Follow an operation to its end and print it."""
    _follow(session, operation, timeout, json_lines=False)


@verb(app, "cancel")
def cancel(
    session: Session,
    operation: OperationArg,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has ended.")] = True,
    timeout: TimeoutOption = "",
) -> None:
    """Ask an operation to stop and to undo what it did; too late after its point of no return."""
    from google.longrunning import operations_pb2
    from remuda.compute.v1 import operation_pb2

    from remuda_cli import resolve
    from remuda_cli.exit_codes import ExitCode
    from remuda_cli.failure import Failure
    from remuda_cli.output.columns import operation_metadata
    from remuda_cli.progress import display as displays
    from remuda_cli.wait import Subjects, follow

    gateway = session.gateway
    found = resolve.operation(gateway, operation)
    gateway.call(gateway.operations.CancelOperation, operations_pb2.CancelOperationRequest(name=found.name))
    session.note(f"{found.name}: cancel requested")
    if not wait:
        return
    display = displays.choose(Subjects(session, ""), session.label, json_lines=False)
    try:
        ended = follow(gateway, found.name, display, timeout_seconds=seconds(timeout) if timeout else None)
    finally:
        display.close()
    if not session.format.for_people:
        session.show(ended)
    metadata = operation_metadata(ended)
    if metadata.state == operation_pb2.OperationMetadata.STATE_CANCELLED:
        session.note(f"{found.name}: cancelled and undone")
        return
    how = ended.error.message if ended.HasField("error") else "it had already done its work"
    raise Failure(
        ExitCode.CONFLICT,
        f"{found.name} was not cancelled: {how}",
        hints=[f"remuda operation show {found.name.rpartition('/')[2]}"],
    )


def _follow(session: Session, operation: str, timeout: str, *, json_lines: bool) -> None:
    from remuda_cli import resolve
    from remuda_cli.wait import finish

    found = resolve.operation(session.gateway, operation)
    session.timeout_seconds = seconds(timeout) if timeout else None
    ended = finish(session, found, target="", json_lines=json_lines)
    if not json_lines and not session.format.for_people:
        session.show(ended)

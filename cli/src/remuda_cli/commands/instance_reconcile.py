"""remuda instance reconcile."""

import typer

from remuda_cli.commands.arguments import EtagOption, InstanceArg, RequestIdOption, request_id
from remuda_cli.session import Session
from remuda_cli.verb import verb

_PLAN_SECONDS = 90.0


def register(app: typer.Typer) -> None:
    verb(app, "reconcile", mutates=True, waits=True)(reconcile)


def reconcile(
    session: Session, instance: InstanceArg, etag: EtagOption = "", request: RequestIdOption = ""
) -> None:
    """Compare the record with what hosts really have, and make it true again (administrators).

    With --dry-run say what would be done. Exit code 4 when something is left for a person to decide.
    """
    from remuda.compute.v1 import reconcile_pb2

    from remuda_cli import resolve
    from remuda_cli.exit_codes import ExitCode
    from remuda_cli.failure import Failure
    from remuda_cli.output.reconcile_view import reconcile_lines, unsolved
    from remuda_cli.wait import admitted, finish

    gateway = session.gateway
    found = resolve.instance(gateway, instance)
    operation = gateway.call(
        gateway.instances.ReconcileInstance,
        reconcile_pb2.ReconcileInstanceRequest(
            name=found.name, etag=etag, request_id=request_id(request), validate_only=session.dry_run
        ),
        # A dry run asks every host, and waits for those that are silent.
        timeout=_PLAN_SECONDS,
    )
    report = reconcile_pb2.ReconcileReport()
    if session.dry_run:
        operation.response.Unpack(report)
    elif admitted(session, operation):
        finish(session, operation, target=found.display_name, response=report)
    else:
        return
    if session.format.for_people:
        session.print_lines(reconcile_lines(report, session.label))
    else:
        session.show(report)
    if session.dry_run:
        session.note("dry run: nothing was done")
    if left := unsolved(report):
        raise Failure(ExitCode.CONFLICT, f"{found.display_name}: {left} left for a person to decide")

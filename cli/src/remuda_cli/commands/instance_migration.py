"""remuda instance live-migrate."""

from enum import StrEnum
from typing import Annotated

import typer

from remuda_cli import completion
from remuda_cli.commands.arguments import EtagOption, InstanceArg, RequestIdOption, request_id
from remuda_cli.failure import Failure
from remuda_cli.output.formats import Format
from remuda_cli.session import Session
from remuda_cli.verb import seconds, verb


class OnTimeout(StrEnum):
    ABORT = "abort"
    PAUSE = "pause"


class Priority(StrEnum):
    USER = "user"
    MAINTENANCE = "maintenance"


_ADMISSION_SECONDS = 60.0
"""With --dry-run it takes the real probes."""


def register(app: typer.Typer) -> None:
    verb(app, "live-migrate", mutates=True, waits=True)(live_migrate)


def live_migrate(
    session: Session,
    instance: InstanceArg,
    to: Annotated[
        str,
        typer.Option(
            "--to", help="Target host; else the scheduler chooses.", autocompletion=completion.hosts
        ),
    ] = "",
    source: Annotated[
        str, typer.Option("--from", help="Refuse unless it is on this host.", autocompletion=completion.hosts)
    ] = "",
    max_downtime: Annotated[
        str, typer.Option("--max-downtime", metavar="TIME", help="Longest pause asked of QEMU; else 300ms.")
    ] = "",
    bandwidth: Annotated[
        int, typer.Option("--bandwidth", metavar="MIB/S", min=0, help="Cap; else the host's.")
    ] = 0,
    migration_timeout: Annotated[
        str, typer.Option("--migration-timeout", metavar="TIME", help="Until the switch-over; else 1h.")
    ] = "",
    on_timeout: Annotated[
        OnTimeout, typer.Option("--on-timeout", help="Give up, or pause the guest so that it can end.")
    ] = OnTimeout.ABORT,
    auto_converge: Annotated[
        bool, typer.Option("--auto-converge", help="Let QEMU slow down a guest that dirties too much.")
    ] = False,
    allow_post_copy: Annotated[
        bool,
        typer.Option(
            "--allow-post-copy",
            help="Let it go on at the target before all memory is there; a cut network then stops it.",
        ),
    ] = False,
    allow_version_skew: Annotated[
        bool,
        typer.Option("--allow-version-skew", help="Let a newer libvirt or QEMU take it; perhaps one way."),
    ] = False,
    priority: Annotated[
        Priority, typer.Option("--priority", help="Who goes first when hosts have as many as they may have.")
    ] = Priority.USER,
    etag: EtagOption = "",
    request: RequestIdOption = "",
) -> None:
    """Move a running instance to another host without stopping it.

    Progress goes to stderr. With -o json every message of WatchOperation goes to stdout, one per line.
    """
    from google.protobuf import duration_pb2
    from remuda.compute.v1 import instance_pb2, moving_pb2

    from remuda_cli import resolve
    from remuda_cli.wait import admitted, finish

    gateway = session.gateway
    found = resolve.instance(gateway, instance)
    kind = moving_pb2.LiveMigrateInstanceRequest
    message = kind(
        name=found.name,
        source_host=resolve.host(gateway, source).name if source else "",
        target_host=resolve.host(gateway, to).name if to else "",
        max_downtime_ms=round(seconds(max_downtime) * 1000) if max_downtime else 0,
        bandwidth_mib_s=bandwidth,
        on_timeout=kind.ON_TIMEOUT_PAUSE if on_timeout is OnTimeout.PAUSE else kind.ON_TIMEOUT_ABORT,
        auto_converge=auto_converge,
        allow_post_copy=allow_post_copy,
        allow_version_skew=allow_version_skew,
        priority=(kind.PRIORITY_MAINTENANCE if priority is Priority.MAINTENANCE else kind.PRIORITY_USER),
        etag=etag,
        request_id=request_id(request),
        validate_only=session.dry_run,
    )
    if migration_timeout:
        duration = duration_pb2.Duration()
        duration.FromMilliseconds(round(seconds(migration_timeout) * 1000))
        message.timeout.CopyFrom(duration)
    moved = instance_pb2.Instance()
    json_lines = session.format is Format.JSON
    try:
        operation = gateway.call(gateway.instances.LiveMigrateInstance, message, timeout=_ADMISSION_SECONDS)
        if not admitted(session, operation):
            return
        finish(session, operation, target=found.display_name, response=moved, json_lines=json_lines)
    except Failure as failure:
        raise _readable(failure, instance) from None
    if session.format in (Format.TABLE, Format.WIDE):
        session.show_all(instance_pb2.Instance, [moved])
    elif not json_lines:
        session.show(moved)


def _readable(failure: Failure, instance: str) -> Failure:
    """What the preflight refused, as check-migration shows it."""
    from remuda_cli.output.preflight_view import refusal_lines

    if failure.reason != "PREFLIGHT_FAILED":
        return failure
    return Failure(
        failure.exit_code,
        failure.message,
        reason=failure.reason,
        details=refusal_lines(failure.details),
        hints=(f"remuda instance check-migration {instance}", *failure.hints),
        request_id=failure.request_id,
    )

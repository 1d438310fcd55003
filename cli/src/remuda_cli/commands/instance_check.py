"""remuda instance check-migration."""

from typing import Annotated

import typer

from remuda_cli import completion
from remuda_cli.commands.arguments import InstanceArg
from remuda_cli.output.formats import Format
from remuda_cli.session import Session
from remuda_cli.verb import seconds, verb

_CHECK_SECONDS = 60.0


def register(app: typer.Typer) -> None:
    verb(app, "check-migration")(check_migration)


def check_migration(
    session: Session,
    instance: InstanceArg,
    to: Annotated[
        str, typer.Option("--to", help="Only this host; else every one.", autocompletion=completion.hosts)
    ] = "",
    allow_version_skew: Annotated[
        bool, typer.Option("--allow-version-skew", help="Let a newer libvirt or QEMU take it.")
    ] = False,
    max_downtime: Annotated[
        str, typer.Option("--max-downtime", metavar="TIME", help="As in live-migrate; else 300ms.")
    ] = "",
    bandwidth: Annotated[
        int, typer.Option("--bandwidth", metavar="MIB/S", min=0, help="As in live-migrate.")
    ] = 0,
    probe: Annotated[
        int, typer.Option("--probe", metavar="N", min=0, max=64, help="Probe so many hosts; else five.")
    ] = 0,
) -> None:
    """Check by real probes where a running instance could move, and touch nothing.

    Exit code 4 when no host is fit.
    """
    from remuda.compute.v1 import moving_pb2

    from remuda_cli import resolve
    from remuda_cli.exit_codes import ExitCode
    from remuda_cli.failure import Failure
    from remuda_cli.output.preflight_view import fit_hosts, preflight_lines

    gateway = session.gateway
    found = resolve.instance(gateway, instance)
    checked = gateway.call(
        gateway.instances.CheckMigration,
        moving_pb2.CheckMigrationRequest(
            name=found.name,
            target_host=resolve.host(gateway, to).name if to else "",
            allow_version_skew=allow_version_skew,
            max_downtime_ms=round(seconds(max_downtime) * 1000) if max_downtime else 0,
            bandwidth_mib_s=bandwidth,
            probe_limit=probe,
        ),
        timeout=_CHECK_SECONDS,
    )
    fit = fit_hosts(checked, session.label)
    if session.format.for_people:
        wide = session.format is Format.WIDE
        session.print_lines(preflight_lines(checked, found.display_name, session.label, wide=wide))
    elif session.format is Format.NAME:
        session.print_lines(fit)
    else:
        session.show(checked)
    if not fit:
        where = f"to {to}" if to else "to any host"
        raise Failure(ExitCode.CONFLICT, f"{found.display_name} cannot move {where} as things are")

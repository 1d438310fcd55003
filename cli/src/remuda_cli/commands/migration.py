"""remuda migration: the record of every move."""

from typing import Annotated

import typer

from remuda_cli import completion
from remuda_cli.commands.arguments import WatchOption
from remuda_cli.session import Session
from remuda_cli.verb import verb

app = typer.Typer(no_args_is_help=True)


@verb(app, "list")
def list_(
    session: Session,
    instance: Annotated[
        str,
        typer.Argument(metavar="[INSTANCE]", help="Only its moves.", autocompletion=completion.instances),
    ] = "",
    all_instances: Annotated[bool, typer.Option("--all", help="Of the whole project; the default.")] = False,
    watch: WatchOption = False,
) -> None:
    """List migrations, newest first."""
    from remuda.compute.v1 import migration_pb2

    from remuda_cli import resolve
    from remuda_cli.failure import usage
    from remuda_cli.watching import watch_list

    if instance and all_instances:
        raise usage("give an INSTANCE or --all, not both")
    gateway = session.gateway
    parent = resolve.instance(gateway, instance).name if instance else ""
    if watch:
        watch_list(session, migration_pb2.Migration, lambda: list(gateway.list_migrations(parent)))
    else:
        session.show_all(migration_pb2.Migration, list(gateway.list_migrations(parent)))


@verb(app, "show")
def show(
    session: Session,
    migration: Annotated[str, typer.Argument(metavar="MIGRATION", help="UUID, unique prefix or full name.")],
) -> None:
    """Show one migration: hosts, measured downtime, bytes, timeline."""
    from remuda_cli import resolve

    session.show(resolve.migration(session.gateway, migration))

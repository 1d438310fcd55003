"""The `remuda` command: nouns, then one place where every ending becomes an exit code."""

import os
import sys
from collections.abc import Sequence

import typer

from remuda_cli.commands import (
    flavor,
    host,
    image,
    image_sharing,
    instance,
    instance_check,
    instance_migration,
    instance_reconcile,
    instance_snapshot,
    instance_views,
    migration,
    migration_commands,
    migration_control,
    network,
    operation,
    quota,
)
from remuda_cli.exit_codes import MEANINGS, ExitCode
from remuda_cli.failure import Failure, ReaderGone
from remuda_cli.verb import global_options

_CODES = "; ".join(f"{int(code)} {text}" for code, text in MEANINGS.items())
_HELP = f"""Virtual machines: launch, look, migrate.

Every noun takes a name, a UUID or a unique prefix. Data goes to stdout, progress to stderr. The options below
may stand before the noun or after the verb; `remuda NOUN VERB --help` lists the rest.

Environment: REMUDA_ENDPOINT, REMUDA_TOKEN, REMUDA_CACERT, REMUDA_CERT, REMUDA_KEY, REMUDA_SERVER_NAME,
REMUDA_PROJECT, REMUDA_CONTEXT, REMUDA_CONFIG, NO_COLOR.

Exit codes: {_CODES}.
"""


def build() -> typer.Typer:
    """The whole command tree. Plain help: rich would cost more time than the text."""
    app = typer.Typer(
        name="remuda",
        help=_HELP,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(global_options)
    image_sharing.register(image.app)
    instance_views.register(instance.app)
    instance_migration.register(instance.app)
    instance_check.register(instance.app)
    instance_reconcile.register(instance.app)
    instance_snapshot.register(instance.app)
    migration_control.register(migration.app)
    migration_commands.register(migration.app)
    app.add_typer(instance.app, name="instance", help="Virtual machines.")
    app.add_typer(host.app, name="host", help="Machines that instances run on.")
    app.add_typer(image.app, name="image", help="Disks that instances boot from.")
    app.add_typer(flavor.app, name="flavor", help="Sizes of instances.")
    app.add_typer(network.app, name="network", help="Bridges and addresses.")
    app.add_typer(migration.app, name="migration", help="Moves of instances.")
    app.add_typer(quota.app, name="quota", help="What projects may have.")
    app.add_typer(operation.app, name="operation", help="What is going on.")
    return app


def run(arguments: Sequence[str]) -> int:
    """The exit code; prints what went wrong."""
    command = typer.main.get_command(build())
    try:
        answer = command.main(list(arguments), prog_name="remuda", standalone_mode=False)
    except Failure as failure:
        for line in failure.lines(debug="--debug" in arguments):
            print(line, file=sys.stderr)
        return int(failure.exit_code)
    except ReaderGone:
        # Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.DONE)
    except Exception as error:
        # typer's own click raises these; they know how to show themselves.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", ExitCode.USAGE))
    return answer if isinstance(answer, int) else int(ExitCode.DONE)


def main() -> None:
    """Console script."""
    sys.exit(run(sys.argv[1:]))

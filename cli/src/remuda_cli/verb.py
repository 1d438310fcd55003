"""Registers a command: gives it the common options, hands it a Session instead.

The common options may stand before the noun too, where they are the root command's (`global_options`).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from remuda_cli.failure import ReaderGone, usage
from remuda_cli.output.formats import Format
from remuda_cli.output.units import parse_seconds
from remuda_cli.session import Session
from remuda_cli.settings import load_contexts, resolve

P = ParamSpec("P")
Command = Callable[Concatenate[Session, P], None]

OutputOption = Annotated[Format | None, typer.Option("--output", "-o", help="How to print; else as a table.")]
ConfigOption = Annotated[
    str,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Context file; else REMUDA_CONFIG, else ~/.config/remuda/contexts.toml.",
    ),
]
ContextOption = Annotated[
    str, typer.Option("--context", metavar="NAME", help="Entry of the context file; else REMUDA_CONTEXT.")
]
ProjectOption = Annotated[
    str, typer.Option("--project", metavar="NAME", help="Project; else REMUDA_PROJECT.")
]
EndpointOption = Annotated[
    str,
    typer.Option(
        "--endpoint",
        metavar="HOST:PORT",
        help="The api, by TLS; http://HOST:PORT without; else REMUDA_ENDPOINT.",
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Print request ids and buf curl lines.")]

_COMMON: dict[str, tuple[Any, Any]] = {
    "output": (OutputOption, None),
    "config": (ConfigOption, ""),
    "context": (ContextOption, ""),
    "project": (ProjectOption, ""),
    "endpoint": (EndpointOption, ""),
    "debug": (DebugOption, False),
}
COMMON_OPTIONS = tuple(_COMMON)
"""Names of the parameters that every command has, and the root command too."""

_MUTATES: dict[str, tuple[Any, Any]] = {
    "dry_run": (Annotated[bool, typer.Option("--dry-run", help="All checks, no effect.")], False),
}
_WAITS: dict[str, tuple[Any, Any]] = {
    "wait": (Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the operation ends.")], True),
    "timeout": (
        Annotated[str, typer.Option("--timeout", metavar="TIME", help="Wait at most this long, e.g. 90s.")],
        "",
    ),
}
_DESTROYS: dict[str, tuple[Any, Any]] = {
    "yes": (Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")], False),
}


def verb(
    app: typer.Typer, name: str, *, mutates: bool = False, waits: bool = False, destroys: bool = False
) -> Callable[[Command[P]], Command[P]]:
    """`mutates`: takes --dry-run. `waits`: takes --wait and --timeout. `destroys`: takes --yes."""
    extra = {
        **_COMMON,
        **(_MUTATES if mutates else {}),
        **(_WAITS if waits else {}),
        **(_DESTROYS if destroys else {}),
    }

    def register(function: Command[P]) -> Command[P]:
        def run(ctx: typer.Context, **values: Any) -> None:
            options = {key: values.pop(key) for key in extra}
            session = session_of(**{**options, **common_options(ctx)})
            try:
                function(session, **values)  # type: ignore[call-arg]
            except BrokenPipeError:
                # Left alone, typer would make an exit code of its own of it.
                raise ReaderGone from None
            finally:
                session.close()

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for key, (annotation, default) in extra.items()
        ]
        keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        # typer reads both: the signature for defaults, the annotations for types.
        run.__signature__ = inspect.Signature([context, *keyword, *common])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [context, *keyword, *common]}
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return register


def global_options(
    output: OutputOption = None,
    config: ConfigOption = "",
    context: ContextOption = "",
    project: ProjectOption = "",
    endpoint: EndpointOption = "",
    debug: DebugOption = False,
) -> None:
    """The root command's own options: `common_options` finds their values in its context."""


def common_options(ctx: typer.Context) -> dict[str, Any]:
    """The common options that were given, before the noun or after the verb; after the verb wins."""
    found: dict[str, Any] = {}
    for key in _COMMON:
        level: Any = ctx
        while level is not None and key not in found:
            if level.params.get(key):
                found[key] = level.params[key]
            level = level.parent
    return found


def session_of(
    *,
    output: Format | None = None,
    config: str = "",
    context: str = "",
    project: str = "",
    endpoint: str = "",
    debug: bool = False,
    dry_run: bool = False,
    wait: bool = True,
    timeout: str = "",
    yes: bool = False,
) -> Session:
    """Raises Failure (usage) for an unusable context or duration."""
    contexts = load_contexts(os.environ, named=config)
    connection = resolve(
        environ=os.environ, contexts=contexts, context=context, endpoint=endpoint, project=project
    )
    return Session(
        connection=connection,
        format=output or Format.TABLE,
        debug=debug,
        dry_run=dry_run,
        wait=wait,
        timeout_seconds=seconds(timeout) if timeout else None,
        yes=yes,
    )


def seconds(text: str) -> float:
    """A duration option. Raises Failure (usage)."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise usage(str(error)) from None

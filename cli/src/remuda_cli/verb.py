"""Registers a command: gives it the common options, hands it a Session instead."""

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

_COMMON: dict[str, tuple[Any, Any]] = {
    "output": (Annotated[Format, typer.Option("--output", "-o", help="How to print.")], Format.TABLE),
    "context": (Annotated[str, typer.Option("--context", help="Entry of the context file.")], ""),
    "project": (Annotated[str, typer.Option("--project", help="Project; else REMUDA_PROJECT.")], ""),
    "endpoint": (Annotated[str, typer.Option("--endpoint", help="host:port; else REMUDA_ENDPOINT.")], ""),
    "debug": (Annotated[bool, typer.Option("--debug", help="Print request ids and buf curl lines.")], False),
}
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
        def run(**values: Any) -> None:
            options = {key: values.pop(key) for key in extra}
            session = session_of(**options)
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
        # typer reads both: the signature for defaults, the annotations for types.
        run.__signature__ = inspect.Signature([*keyword, *common])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*keyword, *common]}
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return register


def session_of(
    *,
    output: Format = Format.TABLE,
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
    contexts = load_contexts(os.environ)
    connection = resolve(
        environ=os.environ, contexts=contexts, context=context, endpoint=endpoint, project=project
    )
    return Session(
        connection=connection,
        format=output,
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

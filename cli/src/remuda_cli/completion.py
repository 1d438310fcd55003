"""Names from the server for the shell's completion. Whatever goes wrong: no proposals, no noise."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import typer

from remuda_cli.failure import Failure

if TYPE_CHECKING:
    from remuda_cli.gateway import Gateway

COMPLETION_SECONDS = 1.5
"""Somebody waits at a prompt with the tab key pressed."""


def _proposals(ctx: typer.Context, incomplete: str, names: "Callable[[Gateway], Iterable[str]]") -> list[str]:
    from remuda_cli.verb import common_options, session_of

    try:
        session = session_of(**common_options(ctx))
        session.call_seconds = COMPLETION_SECONDS
    except Failure:
        return []
    try:
        return sorted(name for name in names(session.gateway) if name.startswith(incomplete))
    except Failure:
        return []
    finally:
        session.close()


def instances(ctx: typer.Context, incomplete: str) -> list[str]:
    return _proposals(ctx, incomplete, lambda gateway: (m.display_name for m in gateway.list_instances()))


def hosts(ctx: typer.Context, incomplete: str) -> list[str]:
    return _proposals(ctx, incomplete, lambda gateway: (m.display_name for m in gateway.list_hosts()))


def images(ctx: typer.Context, incomplete: str) -> list[str]:
    """Those of other projects too, as far as they may be used."""
    return _proposals(
        ctx, incomplete, lambda gateway: (m.display_name for m in gateway.list_images(visible=True))
    )


def own_images(ctx: typer.Context, incomplete: str) -> list[str]:
    return _proposals(ctx, incomplete, lambda gateway: (m.display_name for m in gateway.list_images()))


def flavors(ctx: typer.Context, incomplete: str) -> list[str]:
    return _proposals(ctx, incomplete, lambda gateway: (_last(m.name) for m in gateway.list_flavors()))


def networks(ctx: typer.Context, incomplete: str) -> list[str]:
    return _proposals(ctx, incomplete, lambda gateway: (_last(m.name) for m in gateway.list_networks()))


def operations(ctx: typer.Context, incomplete: str) -> list[str]:
    return _proposals(ctx, incomplete, lambda gateway: (_last(m.name) for m in gateway.list_operations()))


def _last(name: str) -> str:
    return name.rpartition("/")[2]

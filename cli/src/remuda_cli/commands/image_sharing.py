"""remuda image update, share, unshare: what an image is called, says about its guests, and who may use it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from remuda_cli.commands.arguments import EtagOption, OwnImageArg, RequestIdOption, request_id
from remuda_cli.failure import usage
from remuda_cli.session import Session
from remuda_cli.verb import verb

if TYPE_CHECKING:
    from remuda.image.v1 import image_pb2


class Visibility(StrEnum):
    PRIVATE = "private"
    SHARED = "shared"
    PUBLIC = "public"


VisibilityOption = Annotated[
    Visibility | None, typer.Option("--visibility", help="Who may use it; public: administrators.")
]
ShareWithOption = Annotated[
    list[str] | None, typer.Option("--share-with", metavar="PROJECT", help="May use it; may be repeated.")
]


def register(app: typer.Typer) -> None:
    verb(app, "update", mutates=True)(update)
    verb(app, "share", mutates=True)(share)
    verb(app, "unshare", mutates=True)(unshare)


def update(
    session: Session,
    image: OwnImageArg,
    name: Annotated[str, typer.Option("--name", help="New name.")] = "",
    visibility: VisibilityOption = None,
    share_with: ShareWithOption = None,
    min_disk: Annotated[
        int | None, typer.Option("--min-disk", min=0, metavar="GIB", help="Smallest disk it fits on.")
    ] = None,
    min_memory: Annotated[
        int | None, typer.Option("--min-memory", min=0, metavar="MIB", help="It boots with.")
    ] = None,
    architecture: Annotated[str | None, typer.Option("--architecture", help="Empty: any.")] = None,
    guest_agent: Annotated[
        bool | None, typer.Option("--guest-agent/--no-guest-agent", help="It runs qemu-guest-agent.")
    ] = None,
    rescue: Annotated[
        bool | None, typer.Option("--rescue/--no-rescue", help="It is meant for rescuing instances.")
    ] = None,
    etag: EtagOption = "",
    request: RequestIdOption = "",
) -> None:
    """Change name, visibility or properties; takes effect at once. --share-with replaces the projects."""
    from remuda.image.v1 import image_pb2

    from remuda_cli import resolve

    given: dict[str, object] = {
        "display_name": name or None,
        "visibility": visibility_of(visibility, share_with),
        "shared_with": projects_of(share_with) or None,
        "min_disk_gib": min_disk,
        "min_memory_mib": min_memory,
        "architecture": architecture,
        "guest_agent": guest_agent,
        "rescue": rescue,
    }
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        raise usage("nothing to change: give --name, --visibility, --min-disk or another option")
    found = resolve.own_image(session.gateway, image)
    changed = image_pb2.Image(name=found.name, etag=etag, **changes)  # type: ignore[arg-type]
    session.show(_send(session, changed, list(changes), request))


def share(
    session: Session,
    image: OwnImageArg,
    projects: Annotated[list[str], typer.Argument(metavar="PROJECT...", help="Who may use it, too.")],
    request: RequestIdOption = "",
) -> None:
    """Let other projects see an image, download it and boot from it."""
    from remuda.image.v1 import image_pb2

    from remuda_cli import resolve

    found = resolve.own_image(session.gateway, image)
    if found.visibility == image_pb2.Image.VISIBILITY_PUBLIC:
        raise usage(
            f"{found.display_name} is public: every project may use it",
            f"remuda image update {found.display_name} --share-with PROJECT, to share with these only",
        )
    shown = _set_shared(session, found, {*found.shared_with, *projects_of(projects)}, request)
    session.show(shown)


def unshare(
    session: Session,
    image: OwnImageArg,
    projects: Annotated[
        list[str] | None, typer.Argument(metavar="[PROJECT...]", help="None: nobody else may use it.")
    ] = None,
    request: RequestIdOption = "",
) -> None:
    """Take an image back; instances that are based on it keep running."""
    from remuda_cli import resolve

    found = resolve.own_image(session.gateway, image)
    gone = set(projects_of(projects))
    if missing := gone - set(found.shared_with):
        raise usage(f"{found.display_name} is not shared with {', '.join(sorted(missing))}")
    session.show(_set_shared(session, found, set(found.shared_with) - gone if gone else set(), request))


def visibility_of(
    visibility: Visibility | None, share_with: Sequence[str] | None
) -> image_pb2.Image.Visibility.ValueType | None:
    """None: neither is given. Whoever names projects means SHARED; raises Failure (usage) when another
    visibility is given too.
    """
    from remuda.image.v1 import image_pb2

    if share_with:
        if visibility not in (None, Visibility.SHARED):
            raise usage(f"--share-with does not go with --visibility {visibility}")
        return image_pb2.Image.VISIBILITY_SHARED
    if visibility is None:
        return None
    return image_pb2.Image.Visibility.Value(f"VISIBILITY_{visibility.value.upper()}")


def projects_of(given: Sequence[str] | None) -> list[str]:
    """`demo` or `projects/demo`, as full names."""
    return [name if name.startswith("projects/") else f"projects/{name}" for name in given or ()]


def _set_shared(
    session: Session, found: image_pb2.Image, projects: set[str], request: str
) -> image_pb2.Image:
    from remuda.image.v1 import image_pb2

    kind = image_pb2.Image
    # The list is read, changed and written as a whole: the etag keeps a concurrent change from being lost.
    changed = kind(
        name=found.name,
        etag=found.etag,
        visibility=kind.VISIBILITY_SHARED if projects else kind.VISIBILITY_PRIVATE,
        shared_with=sorted(projects),
    )
    return _send(session, changed, ["visibility", "shared_with"], request)


def _send(session: Session, changed: image_pb2.Image, paths: list[str], request: str) -> image_pb2.Image:
    from google.protobuf import field_mask_pb2
    from remuda.image.v1 import image_pb2

    gateway = session.gateway
    return gateway.call(
        gateway.images.UpdateImage,
        image_pb2.UpdateImageRequest(
            image=changed,
            update_mask=field_mask_pb2.FieldMask(paths=paths),
            request_id=request_id(request),
            validate_only=session.dry_run,
        ),
    )

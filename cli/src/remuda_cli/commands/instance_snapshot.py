"""remuda instance snapshot."""

from enum import StrEnum
from typing import Annotated

import typer

from remuda_cli.commands.arguments import EtagOption, InstanceArg, RequestIdOption, request_id
from remuda_cli.session import Session
from remuda_cli.verb import verb


class Quiesce(StrEnum):
    IF_POSSIBLE = "if-possible"
    REQUIRED = "required"
    NONE = "none"


def register(app: typer.Typer) -> None:
    verb(app, "snapshot", mutates=True, waits=True)(snapshot)


def snapshot(
    session: Session,
    instance: InstanceArg,
    name: Annotated[
        str, typer.Argument(metavar="IMAGE_NAME", help="Of the new image: a DNS label with dots.")
    ],
    quiesce: Annotated[
        Quiesce,
        typer.Option("--quiesce", help="Freeze the guest's file systems for a moment, through its agent."),
    ] = Quiesce.IF_POSSIBLE,
    etag: EtagOption = "",
    request: RequestIdOption = "",
) -> None:
    """Make an image of an instance's disk while it runs. Only what was written to it is read and sent."""
    from remuda.compute.v1 import snapshot_pb2
    from remuda.image.v1 import image_pb2

    from remuda_cli import resolve
    from remuda_cli.output.snapshot_view import snapshot_line
    from remuda_cli.wait import admitted, finish

    kind = snapshot_pb2.SnapshotInstanceRequest
    wanted = {
        Quiesce.IF_POSSIBLE: kind.QUIESCE_IF_POSSIBLE,
        Quiesce.REQUIRED: kind.QUIESCE_REQUIRED,
        Quiesce.NONE: kind.QUIESCE_NONE,
    }
    gateway = session.gateway
    found = resolve.instance(gateway, instance)
    operation = gateway.call(
        gateway.instances.SnapshotInstance,
        kind(
            name=found.name,
            display_name=name,
            quiesce=wanted[quiesce],
            etag=etag,
            request_id=request_id(request),
            validate_only=session.dry_run,
        ),
    )
    if admitted(session, operation):
        image = image_pb2.Image()
        finish(session, operation, target=found.display_name, response=image)
        session.note(snapshot_line(image))
        session.show(image)

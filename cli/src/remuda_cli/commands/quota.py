"""remuda quota: what a project may have, and has."""

from typing import Annotated

import typer

from remuda_cli.commands.arguments import RequestIdOption, request_id
from remuda_cli.failure import usage
from remuda_cli.session import Session
from remuda_cli.verb import verb

app = typer.Typer(no_args_is_help=True)

_UNLIMITED = "none"


@verb(app, "show")
def show(
    session: Session,
    whose: Annotated[str, typer.Argument(metavar="[PROJECT]", help="Else the session's own.")] = "",
) -> None:
    """Show what a project uses, and its limits."""
    from remuda.compute.v1 import quota_pb2

    gateway = session.gateway
    asked = quota_pb2.GetQuotaRequest(name=_name(whose) if whose else f"{gateway.project}/quota")
    _show(session, gateway.call(gateway.quotas.GetQuota, asked))


@verb(app, "set", mutates=True)
def set_(
    session: Session,
    whose: Annotated[str, typer.Argument(metavar="PROJECT", help="Whose limits.")],
    images_seen: Annotated[
        str,
        typer.Option(
            "--image-bytes", metavar="SIZE", help="Of images as guests see them, e.g. 500GiB; none: no limit."
        ),
    ] = "",
    images_stored: Annotated[
        str, typer.Option("--image-stored-bytes", metavar="SIZE", help="Of images as they are stored.")
    ] = "",
    request: RequestIdOption = "",
) -> None:
    """Set limits (administrators). What is over a new limit stays, and nothing is added to it."""
    from google.protobuf import field_mask_pb2
    from remuda.compute.v1 import quota_pb2

    limits = {
        field: given
        for field, given in (("image_virtual_bytes", images_seen), ("image_stored_bytes", images_stored))
        if given
    }
    if not limits:
        raise usage("nothing to set: give --image-bytes or --image-stored-bytes")
    quota = quota_pb2.Quota(name=_name(whose))
    for field, given in limits.items():
        if given != _UNLIMITED:
            setattr(quota, field, _size(given))
    gateway = session.gateway
    _show(
        session,
        gateway.call(
            gateway.quotas.UpdateQuota,
            quota_pb2.UpdateQuotaRequest(
                quota=quota,
                update_mask=field_mask_pb2.FieldMask(paths=sorted(limits)),
                request_id=request_id(request),
                validate_only=session.dry_run,
            ),
        ),
    )
    if session.dry_run:
        session.note("dry run: every check passed, nothing was done")


def _name(project: str) -> str:
    return f"projects/{project.removeprefix('projects/')}/quota"


def _size(text: str) -> int:
    from remuda_cli.output.units import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise usage(f"{error}; or {_UNLIMITED}") from None


def _show(session: Session, quota: object) -> None:
    from remuda.compute.v1 import quota_pb2

    from remuda_cli.output.quota_view import quota_lines

    assert isinstance(quota, quota_pb2.Quota)
    if session.format.for_people:
        session.print_lines(quota_lines(quota))
    else:
        session.show(quota)

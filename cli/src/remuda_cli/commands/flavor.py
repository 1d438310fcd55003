"""remuda flavor: the sizes that instances come in."""

from typing import Annotated

import typer

from remuda_cli.commands.arguments import EtagOption, FlavorArg, RequestIdOption, request_id
from remuda_cli.session import Session
from remuda_cli.verb import verb

app = typer.Typer(no_args_is_help=True)


@verb(app, "create", mutates=True)
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A DNS label with dots.")],
    vcpus: Annotated[int, typer.Option("--vcpus", min=1, help="Virtual CPUs.")],
    memory: Annotated[int, typer.Option("--memory", min=16, metavar="MIB", help="Memory in MiB.")],
    disk: Annotated[
        int,
        typer.Option("--disk", min=0, metavar="GIB", help="System disk in GiB; 0: as large as the image."),
    ] = 0,
    request: RequestIdOption = "",
) -> None:
    """Make a flavor."""
    from remuda.compute.v1 import flavor_pb2

    gateway = session.gateway
    session.show(
        gateway.call(
            gateway.flavors.CreateFlavor,
            flavor_pb2.CreateFlavorRequest(
                flavor_id=name,
                flavor=flavor_pb2.Flavor(vcpus=vcpus, memory_mib=memory, disk_gib=disk),
                request_id=request_id(request),
                validate_only=session.dry_run,
            ),
        )
    )


@verb(app, "list")
def list_(session: Session) -> None:
    """List flavors."""
    from remuda.compute.v1 import flavor_pb2

    session.show_all(flavor_pb2.Flavor, list(session.gateway.list_flavors()))


@verb(app, "show")
def show(session: Session, flavor: FlavorArg) -> None:
    """Show one flavor."""
    from remuda_cli import resolve

    session.show(resolve.flavor(session.gateway, flavor))


@verb(app, "delete", mutates=True, destroys=True)
def delete(session: Session, flavor: FlavorArg, etag: EtagOption = "", request: RequestIdOption = "") -> None:
    """Remove a flavor; instances keep the size they were launched with."""
    from remuda.compute.v1 import flavor_pb2

    from remuda_cli import resolve

    gateway = session.gateway
    found = resolve.flavor(gateway, flavor)
    session.confirm(f"Remove {found.name}?")
    gateway.call(
        gateway.flavors.DeleteFlavor,
        flavor_pb2.DeleteFlavorRequest(
            name=found.name, etag=etag, request_id=request_id(request), validate_only=session.dry_run
        ),
    )
    session.note(f"{found.name}: {'would be removed' if session.dry_run else 'removed'}")

"""remuda network: bridges on the hosts, with the addresses that instances get."""

from typing import Annotated

import typer

from remuda_cli.commands.arguments import EtagOption, NetworkArg, RequestIdOption, request_id
from remuda_cli.session import Session
from remuda_cli.verb import verb

app = typer.Typer(no_args_is_help=True)


@verb(app, "create", mutates=True)
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A DNS label.")],
    cidr: Annotated[str, typer.Option("--cidr", help="For example 10.78.0.0/24.")],
    physical: Annotated[str, typer.Option("--physical", help="Name that the hosts map to a bridge.")],
    gateway_address: Annotated[str, typer.Option("--gateway", help="Default gateway for guests.")] = "",
    first: Annotated[str, typer.Option("--first", help="First address that is handed out.")] = "",
    last: Annotated[str, typer.Option("--last", help="Last address that is handed out.")] = "",
    dns: Annotated[list[str] | None, typer.Option("--dns", help="Name server; may be repeated.")] = None,
    mtu: Annotated[int, typer.Option("--mtu", min=0, help="0: the guest's default.")] = 0,
    request: RequestIdOption = "",
) -> None:
    """Make a network."""
    from remuda.compute.v1 import network_pb2

    gateway = session.gateway
    session.show(
        gateway.call(
            gateway.networks.CreateNetwork,
            network_pb2.CreateNetworkRequest(
                network_id=name,
                network=network_pb2.Network(
                    physical_network=physical,
                    cidr=cidr,
                    gateway=gateway_address,
                    allocation_start=first,
                    allocation_end=last,
                    dns_servers=dns,
                    mtu=mtu,
                ),
                request_id=request_id(request),
                validate_only=session.dry_run,
            ),
        )
    )


@verb(app, "list")
def list_(session: Session) -> None:
    """List networks."""
    from remuda.compute.v1 import network_pb2

    session.show_all(network_pb2.Network, list(session.gateway.list_networks()))


@verb(app, "show")
def show(session: Session, network: NetworkArg) -> None:
    """Show one network."""
    from remuda_cli import resolve

    session.show(resolve.network(session.gateway, network))


@verb(app, "delete", mutates=True, destroys=True)
def delete(
    session: Session, network: NetworkArg, etag: EtagOption = "", request: RequestIdOption = ""
) -> None:
    """Remove a network that has no port."""
    from remuda.compute.v1 import network_pb2

    from remuda_cli import resolve

    gateway = session.gateway
    found = resolve.network(gateway, network)
    session.confirm(f"Remove {found.name}?")
    gateway.call(
        gateway.networks.DeleteNetwork,
        network_pb2.DeleteNetworkRequest(
            name=found.name, etag=etag, request_id=request_id(request), validate_only=session.dry_run
        ),
    )
    session.note(f"{found.name}: {'would be removed' if session.dry_run else 'removed'}")

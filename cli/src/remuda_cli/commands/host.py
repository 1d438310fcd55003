"""remuda host: enrol, look, take out of placement."""

import uuid
from typing import TYPE_CHECKING, Annotated

import typer

from remuda_cli import completion
from remuda_cli.commands.arguments import (
    EtagOption,
    FlavorOption,
    HostArg,
    NetworkOption,
    RequestIdOption,
    WatchOption,
    request_id,
)
from remuda_cli.failure import usage
from remuda_cli.output.formats import Format
from remuda_cli.session import Session
from remuda_cli.verb import verb

if TYPE_CHECKING:
    from remuda.compute.v1 import host_pb2

app = typer.Typer(no_args_is_help=True)

_SWEEP_SECONDS = 600.0


@verb(app, "create", mutates=True)
def create(
    session: Session,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Its host name, as the other hosts resolve it.")
    ],
    host_id: Annotated[str, typer.Option("--uuid", help="Its UUID, as libvirt and its certificate say.")],
    request: RequestIdOption = "",
) -> None:
    """Register a host and print the one-time token that its agent enrols with."""
    from remuda.compute.v1 import host_pb2

    try:
        canonical = str(uuid.UUID(host_id))
    except ValueError:
        raise usage(f"--uuid {host_id!r} is no UUID") from None
    gateway = session.gateway
    created = gateway.call(
        gateway.hosts.CreateHost,
        host_pb2.CreateHostRequest(
            host_id=canonical,
            host=host_pb2.Host(display_name=name),
            request_id=request_id(request),
            validate_only=session.dry_run,
        ),
    )
    if session.dry_run:
        session.note("dry run: every check passed, nothing was done")
    elif session.format.for_people:
        session.note(f"host {name} ({canonical}) is registered; its enrolment token is shown only now:")
        print(created.enrolment_token)
    elif session.format is Format.NAME:
        session.show(created.host)
    else:
        session.show(created)


@verb(app, "list")
def list_(session: Session, watch: WatchOption = False) -> None:
    """List hosts. A * marks a pool that several hosts share."""
    from remuda.compute.v1 import host_pb2

    from remuda_cli.watching import watch_list

    def hosts() -> "list[host_pb2.Host]":
        # The api lists by UUID, which tells people nothing.
        return sorted(session.gateway.list_hosts(), key=lambda host: (host.display_name, host.name))

    if watch:
        watch_list(session, host_pb2.Host, hosts)
    else:
        session.show_all(host_pb2.Host, hosts())


@verb(app, "show")
def show(session: Session, host: HostArg) -> None:
    """Show one host."""
    from remuda_cli import resolve

    session.show(resolve.host(session.gateway, host))


@verb(app, "delete", mutates=True, destroys=True)
def delete(session: Session, host: HostArg, etag: EtagOption = "", request: RequestIdOption = "") -> None:
    """Remove a host that holds no instance."""
    from remuda.compute.v1 import host_pb2

    from remuda_cli import resolve

    gateway = session.gateway
    found = resolve.host(gateway, host)
    session.confirm(f"Remove host {found.display_name} ({found.uid})?")
    gateway.call(
        gateway.hosts.DeleteHost,
        host_pb2.DeleteHostRequest(
            name=found.name, etag=etag, request_id=request_id(request), validate_only=session.dry_run
        ),
    )
    session.note(f"host {found.display_name}: {'would be removed' if session.dry_run else 'removed'}")


@verb(app, "cordon", mutates=True)
def cordon(session: Session, host: HostArg, request: RequestIdOption = "") -> None:
    """Take a host out of placement; what runs there stays."""
    from remuda.compute.v1 import host_pb2

    from remuda_cli import resolve

    gateway = session.gateway
    message = host_pb2.CordonHostRequest(
        name=resolve.host(gateway, host).name,
        request_id=request_id(request),
        validate_only=session.dry_run,
    )
    _changed(session, gateway.call(gateway.hosts.CordonHost, message))


@verb(app, "uncordon", mutates=True)
def uncordon(session: Session, host: HostArg, request: RequestIdOption = "") -> None:
    """Put a host back into placement."""
    from remuda.compute.v1 import host_pb2

    from remuda_cli import resolve

    gateway = session.gateway
    message = host_pb2.UncordonHostRequest(
        name=resolve.host(gateway, host).name,
        request_id=request_id(request),
        validate_only=session.dry_run,
    )
    _changed(session, gateway.call(gateway.hosts.UncordonHost, message))


@verb(app, "sweep", mutates=True, destroys=True)
def sweep(session: Session, host: HostArg, request: RequestIdOption = "") -> None:
    """List what lies on a host and no instance needs, and remove what can be removed safely.

    With --dry-run only list. Never a disk of which no other copy is proven.
    """
    from remuda.compute.v1 import host_pb2

    from remuda_cli import resolve
    from remuda_cli.output.units import human_bytes

    gateway = session.gateway
    found = resolve.host(gateway, host)
    session.confirm(f"Remove from host {found.display_name} what no instance needs (--dry-run lists it)?")
    answer = gateway.call(
        gateway.hosts.SweepHost,
        host_pb2.SweepHostRequest(
            name=found.name, request_id=request_id(request), validate_only=session.dry_run
        ),
        # Disks may have to be compared byte by byte.
        timeout=_SWEEP_SECONDS,
    )
    if not session.format.for_people:
        session.show(answer)
        return
    session.show_all(host_pb2.SweepItem, list(answer.items))
    gone = [item for item in answer.items if (item.removable if session.dry_run else item.removed)]
    size = human_bytes(sum(item.size_bytes for item in gone))
    did = "dry run, nothing was done; would be removed" if session.dry_run else "removed"
    more = f"; {answer.left_off} more are not shown, sweep again" if answer.left_off else ""
    stay = len(answer.items) - len(gone)
    session.note(f"host {found.display_name}: {did}: {len(gone)} ({size}); stays: {stay}{more}")


@verb(app, "explain-placement")
def explain_placement(
    session: Session,
    flavor: FlavorOption,
    network: NetworkOption = None,
    pool: Annotated[str, typer.Option("--pool", help="Storage pool that must be there.")] = "",
    host: Annotated[str, typer.Option("--host", help="Only this one.", autocompletion=completion.hosts)] = "",
) -> None:
    """Say where a launch would go now, and why not elsewhere."""
    from remuda.compute.v1 import host_pb2, operation_pb2

    from remuda_cli import resolve

    gateway = session.gateway
    answer = gateway.call(
        gateway.hosts.ExplainPlacement,
        host_pb2.ExplainPlacementRequest(
            flavor=resolve.flavor(gateway, flavor).name,
            networks=[resolve.network(gateway, name).name for name in network or ()],
            pool=pool,
            host=resolve.host(gateway, host).name if host else "",
        ),
    )
    if not session.format.for_people:
        session.show(answer)
        return
    session.show_all(operation_pb2.HostVerdict, list(answer.hosts))
    rejected = ", ".join(f"{name} {count}" for name, count in sorted(answer.rejections.items())) or "none"
    where = session.label(answer.chosen_host) if answer.chosen_host else "no host fits"
    session.note(f"{answer.considered} hosts considered; refused by filter: {rejected}; chosen: {where}")


def _changed(session: Session, host: "host_pb2.Host") -> None:
    from remuda.compute.v1 import host_pb2

    if session.format.for_people:
        session.show_all(host_pb2.Host, [host])
    else:
        session.show(host)

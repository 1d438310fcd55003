"""remuda instance: launch, look, change, stop, delete."""

from pathlib import Path
from typing import Annotated

import typer

from remuda_cli import completion
from remuda_cli.commands.arguments import (
    EtagOption,
    FlavorOption,
    InstanceArg,
    NetworkOption,
    RequestIdOption,
    request_id,
)
from remuda_cli.failure import usage
from remuda_cli.session import Session
from remuda_cli.verb import seconds, verb

app = typer.Typer(no_args_is_help=True)

LabelsOption = Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE; may be repeated.")]


def launch(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A DNS label; also the guest's host name.")],
    flavor: FlavorOption,
    image: Annotated[
        str, typer.Option("--image", help="What it boots from.", autocompletion=completion.images)
    ],
    network: NetworkOption = None,
    user_data: Annotated[
        Path | None, typer.Option("--user-data", help="File for the config drive; - is stdin.")
    ] = None,
    pool: Annotated[str, typer.Option("--pool", help="Storage pool; else a local one is chosen.")] = "",
    host: Annotated[
        str, typer.Option("--host", help="Launch there (administrators).", autocompletion=completion.hosts)
    ] = "",
    label: LabelsOption = None,
    request: RequestIdOption = "",
) -> None:
    """Launch an instance and wait until it runs."""
    from remuda.compute.v1 import instance_pb2

    from remuda_cli import resolve
    from remuda_cli.wait import admitted, finish

    gateway = session.gateway
    interfaces = []
    for given in network or ():
        wanted, _, address = given.partition("=")
        interfaces.append(
            instance_pb2.NetworkInterface(network=resolve.network(gateway, wanted).name, address=address)
        )
    operation = gateway.call(
        gateway.instances.CreateInstance,
        instance_pb2.CreateInstanceRequest(
            parent=gateway.project,
            instance=instance_pb2.Instance(
                display_name=name,
                flavor=resolve.flavor(gateway, flavor).name,
                image=resolve.image(gateway, image).name,
                network_interfaces=interfaces,
                user_data=_user_data(user_data),
                pool=pool,
                labels=labels_of(label),
            ),
            host=resolve.host(gateway, host).name if host else "",
            request_id=request_id(request),
            validate_only=session.dry_run,
        ),
    )
    if admitted(session, operation):
        instance = instance_pb2.Instance()
        finish(session, operation, target=name, response=instance)
        session.show(instance)


verb(app, "create", mutates=True, waits=True)(launch)
verb(app, "launch", mutates=True, waits=True)(launch)


@verb(app, "show")
def show(session: Session, instance: InstanceArg) -> None:
    """Show one instance."""
    from remuda_cli import resolve

    session.show(resolve.instance(session.gateway, instance))


@verb(app, "update", mutates=True)
def update(
    session: Session,
    instance: InstanceArg,
    name: Annotated[str, typer.Option("--name", help="New name.")] = "",
    label: LabelsOption = None,
    remove_label: Annotated[
        list[str] | None, typer.Option("--remove-label", help="KEY; may be repeated.")
    ] = None,
    etag: EtagOption = "",
    request: RequestIdOption = "",
) -> None:
    """Change name or labels; takes effect at once."""
    from google.protobuf import field_mask_pb2
    from remuda.compute.v1 import instance_pb2

    from remuda_cli import resolve

    if not name and not label and not remove_label:
        raise usage("nothing to change: give --name, --label or --remove-label")
    gateway = session.gateway
    current = resolve.instance(gateway, instance)
    labels = {**current.labels, **labels_of(label)}
    for key in remove_label or ():
        labels.pop(key, None)
    paths = (["display_name"] if name else []) + (["labels"] if label or remove_label else [])
    # Labels are read, changed and written as a whole: the etag keeps a concurrent change from being lost.
    changed = instance_pb2.Instance(
        name=current.name,
        etag=etag or current.etag,
        display_name=name or current.display_name,
        labels=labels,
        flavor=current.flavor,
        image=current.image,
    )
    session.show(
        gateway.call(
            gateway.instances.UpdateInstance,
            instance_pb2.UpdateInstanceRequest(
                instance=changed,
                update_mask=field_mask_pb2.FieldMask(paths=paths),
                request_id=request_id(request),
                validate_only=session.dry_run,
            ),
        )
    )


@verb(app, "delete", mutates=True, waits=True, destroys=True)
def delete(
    session: Session, instance: InstanceArg, etag: EtagOption = "", request: RequestIdOption = ""
) -> None:
    """Terminate an instance, from any state. Its disks are removed."""
    from remuda.compute.v1 import instance_pb2

    from remuda_cli import resolve
    from remuda_cli.wait import admitted, finish

    gateway = session.gateway
    found = resolve.instance(gateway, instance)
    session.confirm(f"Delete instance {found.display_name} ({found.uid}) with its disks?")
    operation = gateway.call(
        gateway.instances.DeleteInstance,
        instance_pb2.DeleteInstanceRequest(
            name=found.name, etag=etag, request_id=request_id(request), validate_only=session.dry_run
        ),
    )
    if admitted(session, operation):
        ended = finish(session, operation, target=found.display_name)
        if not session.format.for_people:
            session.show(ended)


@verb(app, "start", mutates=True, waits=True)
def start(
    session: Session, instance: InstanceArg, etag: EtagOption = "", request: RequestIdOption = ""
) -> None:
    """Start a stopped instance on its host."""
    from remuda.compute.v1 import instance_pb2

    from remuda_cli import resolve
    from remuda_cli.wait import admitted, finish

    gateway = session.gateway
    found = resolve.instance(gateway, instance)
    operation = gateway.call(
        gateway.instances.StartInstance,
        instance_pb2.StartInstanceRequest(
            name=found.name, etag=etag, request_id=request_id(request), validate_only=session.dry_run
        ),
    )
    if admitted(session, operation):
        started = instance_pb2.Instance()
        finish(session, operation, target=found.display_name, response=started)
        session.show(started)


@verb(app, "stop", mutates=True, waits=True)
def stop(
    session: Session,
    instance: InstanceArg,
    grace: Annotated[
        str, typer.Option("--grace", metavar="TIME", help="For the guest after the power button; else 60s.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Off at once, as if the cable were pulled.")] = False,
    discard_memory: Annotated[
        bool, typer.Option("--discard-memory", help="Needed for a paused instance: its memory is lost.")
    ] = False,
    etag: EtagOption = "",
    request: RequestIdOption = "",
) -> None:
    """Shut an instance off: power button first, then off."""
    from google.protobuf import duration_pb2
    from remuda.compute.v1 import instance_pb2

    from remuda_cli import resolve
    from remuda_cli.wait import admitted, finish

    gateway = session.gateway
    found = resolve.instance(gateway, instance)
    message = instance_pb2.StopInstanceRequest(
        name=found.name,
        force=force,
        discard_memory=discard_memory,
        etag=etag,
        request_id=request_id(request),
        validate_only=session.dry_run,
    )
    if grace:
        duration = duration_pb2.Duration()
        duration.FromMilliseconds(round(seconds(grace) * 1000))
        message.grace.CopyFrom(duration)
    operation = gateway.call(gateway.instances.StopInstance, message)
    if admitted(session, operation):
        stopped = instance_pb2.Instance()
        finish(session, operation, target=found.display_name, response=stopped)
        session.show(stopped)


def labels_of(pairs: list[str] | None) -> dict[str, str]:
    """KEY=VALUE words. Raises Failure (usage)."""
    labels = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise usage(f"--label {pair!r} is not KEY=VALUE")
        labels[key] = value
    return labels


def _user_data(path: Path | None) -> bytes:
    import sys

    if path is None:
        return b""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise usage(f"cannot read {path}: {error.strerror}") from None

"""Arguments that several nouns take."""

from typing import Annotated

import typer

from remuda_cli import completion

InstanceArg = Annotated[
    str,
    typer.Argument(
        metavar="INSTANCE", help="Name, UUID or unique prefix.", autocompletion=completion.instances
    ),
]
HostArg = Annotated[
    str, typer.Argument(metavar="HOST", help="Name, UUID or unique prefix.", autocompletion=completion.hosts)
]
ImageArg = Annotated[
    str,
    typer.Argument(metavar="IMAGE", help="Name, UUID or unique prefix.", autocompletion=completion.images),
]
OwnImageArg = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE", help="Name, UUID or unique prefix.", autocompletion=completion.own_images
    ),
]
FlavorArg = Annotated[
    str, typer.Argument(metavar="FLAVOR", help="Name or unique prefix.", autocompletion=completion.flavors)
]
NetworkArg = Annotated[
    str, typer.Argument(metavar="NETWORK", help="Name or unique prefix.", autocompletion=completion.networks)
]
OperationArg = Annotated[
    str,
    typer.Argument(metavar="OPERATION", help="UUID or unique prefix.", autocompletion=completion.operations),
]
FlavorOption = Annotated[str, typer.Option("--flavor", help="Its size.", autocompletion=completion.flavors)]
NetworkOption = Annotated[
    list[str] | None,
    typer.Option(
        "--network", help="NETWORK or NETWORK=ADDRESS; may be repeated.", autocompletion=completion.networks
    ),
]
RequestIdOption = Annotated[
    str,
    typer.Option(
        "--request-id", metavar="UUID", help="Repeat an earlier request; the same id has one effect."
    ),
]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Go on and print what changes.")]
EtagOption = Annotated[str, typer.Option("--etag", help="Refuse when the resource has changed since.")]


def request_id(given: str) -> str:
    """Every mutation has one: the channel repeats calls that got no answer."""
    import uuid

    return given or str(uuid.uuid4())

"""Name, UUID or unique prefix to the resource that is meant."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from google.longrunning import operations_pb2
from google.protobuf.message import Message
from remuda.compute.v1 import flavor_pb2, host_pb2, instance_pb2, migration_pb2, network_pb2
from remuda.image.v1 import image_pb2

from remuda_cli.exit_codes import ExitCode
from remuda_cli.failure import Failure, usage
from remuda_cli.gateway import Gateway

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noun(Generic[M]):
    """How one kind of resource is looked up."""

    word: str
    collection: str
    """What full names have before the last part, for example `hosts/`."""
    get: Callable[[str], M]
    """By full name; raises Failure NOT_FOUND."""
    list_all: Callable[[], Iterable[M]]
    keys: Callable[[Any], Sequence[str]]
    """What a prefix may match, what people call it first."""


def find(noun: Noun[M], given: str) -> M:
    """Exact first, which costs one call; then unique prefix, which lists.

    Raises Failure: not found (with what is close), or usage when the prefix fits several.
    """
    if not given:
        raise usage(f"an empty name is no {noun.word}")
    full = given if "/" in given else noun.collection + given
    try:
        return noun.get(full)
    except Failure as failure:
        if failure.exit_code is not ExitCode.NOT_FOUND or "/" in given:
            raise
        missing = failure
    everything = list(noun.list_all())
    fitting = [item for item in everything if any(key.startswith(given) for key in noun.keys(item))]
    # What a full name could not reach, for example an image that another project shares.
    fitting = [item for item in fitting if given in noun.keys(item)] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        named = ", ".join(sorted(noun.keys(item)[0] for item in fitting)[:5])
        raise usage(f"{given!r} fits {len(fitting)} {noun.word}s: {named}")
    close = get_close_matches(given, [noun.keys(item)[0] for item in everything], n=3)
    raise Failure(
        ExitCode.NOT_FOUND,
        f"there is no {noun.word} {given!r}",
        reason=missing.reason,
        details=[f"close to it: {', '.join(close)}"] if close else [],
        hints=[f"remuda {noun.word} list"],
        request_id=missing.request_id,
    ) from None


def instance(gateway: Gateway, given: str) -> instance_pb2.Instance:
    return find(
        Noun(
            word="instance",
            collection=f"{gateway.project}/instances/",
            get=lambda name: gateway.call(
                gateway.instances.GetInstance, instance_pb2.GetInstanceRequest(name=name)
            ),
            list_all=gateway.list_instances,
            keys=lambda m: (m.display_name, m.uid),
        ),
        given,
    )


def host(gateway: Gateway, given: str) -> host_pb2.Host:
    return find(
        Noun(
            word="host",
            collection="hosts/",
            get=lambda name: gateway.call(gateway.hosts.GetHost, host_pb2.GetHostRequest(name=name)),
            list_all=gateway.list_hosts,
            keys=lambda m: (m.display_name, m.uid),
        ),
        given,
    )


def image(gateway: Gateway, given: str) -> image_pb2.Image:
    """To look at, to download, to boot from: of another project too, if none of this one's is called so."""
    return find(_images(gateway, visible=True), given)


def own_image(gateway: Gateway, given: str) -> image_pb2.Image:
    """To change."""
    return find(_images(gateway, visible=False), given)


def _images(gateway: Gateway, *, visible: bool) -> Noun[image_pb2.Image]:
    return Noun(
        word="image",
        collection=f"{gateway.project}/images/",
        get=lambda name: gateway.call(gateway.images.GetImage, image_pb2.GetImageRequest(name=name)),
        list_all=lambda: gateway.list_images(visible=visible),
        keys=lambda m: (m.display_name, m.uid),
    )


def flavor(gateway: Gateway, given: str) -> flavor_pb2.Flavor:
    return find(
        Noun(
            word="flavor",
            collection="flavors/",
            get=lambda name: gateway.call(gateway.flavors.GetFlavor, flavor_pb2.GetFlavorRequest(name=name)),
            list_all=gateway.list_flavors,
            keys=lambda m: (m.name.rpartition("/")[2],),
        ),
        given,
    )


def network(gateway: Gateway, given: str) -> network_pb2.Network:
    return find(
        Noun(
            word="network",
            collection="networks/",
            get=lambda name: gateway.call(
                gateway.networks.GetNetwork, network_pb2.GetNetworkRequest(name=name)
            ),
            list_all=gateway.list_networks,
            keys=lambda m: (m.name.rpartition("/")[2],),
        ),
        given,
    )


def operation(gateway: Gateway, given: str) -> operations_pb2.Operation:
    return find(
        Noun(
            word="operation",
            collection="operations/",
            get=lambda name: gateway.call(
                gateway.operations.GetOperation, operations_pb2.GetOperationRequest(name=name)
            ),
            list_all=gateway.list_operations,
            keys=lambda m: (m.name.rpartition("/")[2],),
        ),
        given,
    )


def migration(gateway: Gateway, given: str) -> migration_pb2.Migration:
    """Migrations have no name without their instance: a bare id is looked for in the whole project."""
    return find(
        Noun(
            word="migration",
            collection=f"{gateway.project}/instances/-/migrations/",
            get=lambda name: _get_migration(gateway, name),
            list_all=gateway.list_migrations,
            keys=lambda m: (m.name.rpartition("/")[2],),
        ),
        given,
    )


def _get_migration(gateway: Gateway, name: str) -> migration_pb2.Migration:
    if "/instances/-/" in name:
        raise Failure(ExitCode.NOT_FOUND, f"{name} does not exist", reason="MIGRATION_NOT_FOUND")
    return gateway.call(gateway.migrations.GetMigration, migration_pb2.GetMigrationRequest(name=name))

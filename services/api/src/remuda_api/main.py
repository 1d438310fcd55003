"""remuda-api: the public gateway. Everything it consists of is put together here, top to bottom."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.longrunning.operations_pb2_grpc import add_OperationsServicer_to_server
from remuda.compute.v1.flavor_pb2_grpc import add_FlavorServiceServicer_to_server
from remuda.compute.v1.host_pb2_grpc import add_HostServiceServicer_to_server
from remuda.compute.v1.instance_pb2_grpc import add_InstanceServiceServicer_to_server
from remuda.compute.v1.migration_pb2_grpc import add_MigrationServiceServicer_to_server
from remuda.compute.v1.network_pb2_grpc import add_NetworkServiceServicer_to_server
from remuda.compute.v1.operation_pb2_grpc import add_OperationServiceServicer_to_server
from remuda.image.v1.image_pb2_grpc import add_ImageServiceServicer_to_server
from remuda.store.v1 import host_pb2, image_pb2, instance_pb2, operation_pb2
from remuda_core.auth.caller import Kind
from remuda_core.auth.identity import TokensFile
from remuda_core.config import ConfigError, load_or_exit
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.memory import keep_freed_memory
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.server import Service, ServiceServer, run_service
from remuda_core.telemetry import logs
from remuda_core.telemetry.http import telemetry_server
from remuda_core.telemetry.metrics import Metrics

from remuda_api.admission.flavors import FlavorAdmission
from remuda_api.admission.hosts import HostAdmission
from remuda_api.admission.images import ImageAdmission
from remuda_api.admission.instances import InstanceAdmission
from remuda_api.admission.mutations import Mutations
from remuda_api.admission.networks import NetworkAdmission
from remuda_api.admission.operations import OperationAdmission
from remuda_api.admission.resolving import Resolver
from remuda_api.admission.updates import UpdateAdmission
from remuda_api.admission.verbs import VerbAdmission
from remuda_api.following import OperationHub, OperationWatcher
from remuda_api.gauges import all_caches, keep_gauges
from remuda_api.handlers.flavors import FlavorHandler
from remuda_api.handlers.hosts import HostHandler
from remuda_api.handlers.images import ImageHandler
from remuda_api.handlers.instances import InstanceHandler
from remuda_api.handlers.migrations import MigrationHandler
from remuda_api.handlers.networks import NetworkHandler
from remuda_api.handlers.operations import OperationHandler
from remuda_api.image_stores import ImageStores
from remuda_api.leader import LeaderLink
from remuda_api.listing.instances import InstanceViews
from remuda_api.listing.pages import CacheViews, Pager
from remuda_api.listing.queries import InstanceQueries
from remuda_api.reading import Reads
from remuda_api.settings import ApiSettings
from remuda_api.steering import MigrationSteering
from remuda_api.store.caches import Caches, open_caches
from remuda_api.watching import InstanceWatcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """While it serves."""

    server: ServiceServer
    metrics: Metrics
    metrics_port: int
    caches: Caches


@asynccontextmanager
async def gateway(settings: ApiSettings) -> AsyncIterator[Gateway]:
    """Serves from the moment it is entered; waits for etcd as long as it takes.

    Raises ConfigError for files that cannot be read.
    """
    tls, metrics, keys = settings.read_tls(), Metrics(), Keys(settings.etcd.prefix)
    tokens = _tokens(settings)

    def channel(target: str) -> grpc.aio.Channel:
        return open_channel(target, tls, insecure_identity="service/api")

    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(Etcd.open(settings.etcd.client_config()))
        caches = await stack.enter_async_context(open_caches(etcd, keys))
        hub = await stack.enter_async_context(OperationHub(caches))
        leader = LeaderLink(caches, channel)
        stack.push_async_callback(leader.close)
        stores = ImageStores(settings.image_stores, channel)
        stack.push_async_callback(stores.close)
        server = await stack.enter_async_context(
            ServiceServer(
                listen=settings.listen,
                token_listen=settings.token_listen,
                services=_services(etcd, caches, hub, leader, stores),
                tls=tls,
                metrics=metrics,
                tokens=tokens,
                # Agents and other services have no business here, whatever a policy row says.
                kinds=frozenset({Kind.USER}),
                drain_seconds=settings.drain_seconds,
            )
        )

        async def targets() -> object:
            return [{"targets": list(g.targets), "labels": g.labels} for g in settings.sd_targets]

        telemetry = await stack.enter_async_context(
            telemetry_server(
                settings.metrics_listen,
                metrics,
                healthy=lambda: _trouble(caches),
                routes={"/sd/targets": targets},
            )
        )
        gauges = asyncio.create_task(keep_gauges(caches, metrics))
        stack.push_async_callback(_cancelled, gauges)
        yield Gateway(server=server, metrics=metrics, metrics_port=telemetry.port, caches=caches)


def _services(
    etcd: Etcd, caches: Caches, hub: OperationHub, leader: LeaderLink, stores: ImageStores
) -> Sequence[Service]:
    keys = caches.keys
    resolver, mutations = Resolver(etcd, keys), Mutations(etcd, keys)
    reads = Reads(etcd, caches, resolver)
    instances = InstanceHandler(
        caches=caches,
        reads=reads,
        pager=Pager(InstanceViews(etcd, caches)),
        queries=InstanceQueries(keys, resolver),
        creation=InstanceAdmission(mutations, resolver, leader),
        updates=UpdateAdmission(mutations, resolver),
        verbs=VerbAdmission(mutations, resolver, leader),
        watcher=InstanceWatcher(caches),
        leader=leader,
    )
    cancels, watcher = OperationAdmission(mutations), OperationWatcher(hub, reads, leader)
    operations = OperationHandler(
        caches=caches,
        reads=reads,
        pager=Pager(CacheViews(etcd, caches.operations, operation_pb2.OperationRecord)),
        admission=cancels,
        watcher=watcher,
    )
    migrations = MigrationHandler(
        caches,
        reads,
        Pager(CacheViews(etcd, caches.migrations, instance_pb2.MigrationRecord)),
        MigrationSteering(reads, cancels, watcher, leader),
    )
    hosts = HostHandler(
        caches=caches,
        reads=reads,
        pager=Pager(CacheViews(etcd, caches.hosts, host_pb2.HostRecord)),
        admission=HostAdmission(mutations, resolver, caches),
        resolver=resolver,
        leader=leader,
    )
    flavors = FlavorHandler(
        caches,
        reads,
        Pager(CacheViews(etcd, caches.flavors, host_pb2.FlavorRecord)),
        FlavorAdmission(mutations),
    )
    networks = NetworkHandler(
        caches,
        reads,
        Pager(CacheViews(etcd, caches.networks, host_pb2.NetworkRecord)),
        NetworkAdmission(mutations),
    )
    images = ImageHandler(
        caches=caches,
        reads=reads,
        pager=Pager(CacheViews(etcd, caches.images, image_pb2.ImageRecord)),
        admission=ImageAdmission(mutations, resolver),
        stores=stores,
    )
    return (
        Service(add_InstanceServiceServicer_to_server, instances),
        Service(add_OperationsServicer_to_server, operations),
        Service(add_OperationServiceServicer_to_server, operations),
        Service(add_MigrationServiceServicer_to_server, migrations),
        Service(add_HostServiceServicer_to_server, hosts),
        Service(add_FlavorServiceServicer_to_server, flavors),
        Service(add_NetworkServiceServicer_to_server, networks),
        Service(add_ImageServiceServicer_to_server, images),
    )


def _tokens(settings: ApiSettings) -> TokensFile | None:
    if settings.tokens_file is None:
        return None
    try:
        return TokensFile(settings.tokens_file)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _trouble(caches: Caches) -> str:
    behind = [cache.prefix for cache in all_caches(caches) if not cache.connected]
    return f"etcd cannot be followed: {', '.join(behind)}" if behind else ""


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main() -> None:
    settings = load_or_exit(ApiSettings, sys.argv[1:], "REMUDA_API_")
    keep_freed_memory()
    logs.configure(level=settings.log_level, service="api")

    async def serve(stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            # Starting waits for etcd, perhaps for ever: a signal ends that too.
            starting = asyncio.create_task(stack.enter_async_context(gateway(settings)))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
            else:
                await _cancelled(starting)

    try:
        run_service(serve)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"remuda-api: {error}\n")
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()

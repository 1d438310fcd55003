"""The public services as a command sees them: failures are Failure, lists are whole."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.message import Message
from remuda.compute.v1 import (
    flavor_pb2,
    flavor_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    instance_pb2,
    instance_pb2_grpc,
    migration_pb2,
    migration_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    operation_pb2_grpc,
    quota_pb2_grpc,
)
from remuda.image.v1 import image_pb2, image_pb2_grpc

from remuda_cli.rpc_failure import from_rpc_error

PAGE_SIZE = 500

Response = TypeVar("Response", bound=Message)


class Gateway:
    """Stubs by noun, over one channel."""

    def __init__(self, channel: grpc.Channel, *, project: str, call_seconds: float) -> None:
        self._call_seconds = call_seconds
        self.project = f"projects/{project}"
        self.instances = instance_pb2_grpc.InstanceServiceStub(channel)
        self.hosts = host_pb2_grpc.HostServiceStub(channel)
        self.images = image_pb2_grpc.ImageServiceStub(channel)
        self.flavors = flavor_pb2_grpc.FlavorServiceStub(channel)
        self.networks = network_pb2_grpc.NetworkServiceStub(channel)
        self.quotas = quota_pb2_grpc.QuotaServiceStub(channel)
        self.migrations = migration_pb2_grpc.MigrationServiceStub(channel)
        self.operations = operations_pb2_grpc.OperationsStub(channel)
        self.watches = operation_pb2_grpc.OperationServiceStub(channel)

    def call(
        self, method: Callable[..., Response], request: Message, *, timeout: float | None = None
    ) -> Response:
        """Raises Failure for every status other than OK."""
        try:
            return method(request, timeout=timeout or self._call_seconds)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def list_instances(self, *, parent: str = "", wanted: str = "") -> Iterator[instance_pb2.Instance]:
        """`wanted`: the server's filter, for example `state = RUNNING`."""
        request = instance_pb2.ListInstancesRequest(
            parent=parent or self.project, filter=wanted, page_size=PAGE_SIZE
        )
        return self._pages(self.instances.ListInstances, request, "instances")

    def list_hosts(self) -> Iterator[host_pb2.Host]:
        return self._pages(self.hosts.ListHosts, host_pb2.ListHostsRequest(page_size=PAGE_SIZE), "hosts")

    def list_images(self, *, visible: bool = False) -> Iterator[image_pb2.Image]:
        """`visible`: those of other projects too, that are public or shared with this one."""
        request = image_pb2.ListImagesRequest(
            parent=self.project, page_size=PAGE_SIZE, include_visible=visible
        )
        return self._pages(self.images.ListImages, request, "images")

    def list_flavors(self) -> Iterator[flavor_pb2.Flavor]:
        request = flavor_pb2.ListFlavorsRequest(page_size=PAGE_SIZE)
        return self._pages(self.flavors.ListFlavors, request, "flavors")

    def list_networks(self) -> Iterator[network_pb2.Network]:
        request = network_pb2.ListNetworksRequest(page_size=PAGE_SIZE)
        return self._pages(self.networks.ListNetworks, request, "networks")

    def list_migrations(self, instance: str = "") -> Iterator[migration_pb2.Migration]:
        """`instance`: full name; empty: all of the project."""
        request = migration_pb2.ListMigrationsRequest(
            parent=instance or f"{self.project}/instances/-", page_size=PAGE_SIZE
        )
        return self._pages(self.migrations.ListMigrations, request, "migrations")

    def list_operations(self, wanted: str = "") -> Iterator[operations_pb2.Operation]:
        request = operations_pb2.ListOperationsRequest(name="operations", filter=wanted, page_size=PAGE_SIZE)
        return self._pages(self.operations.ListOperations, request, "operations")

    def _pages(self, method: Callable[..., Message], request: Message, field: str) -> Iterator[Any]:
        page = cast(Any, request)
        while True:
            response: Any = self.call(method, page)
            yield from getattr(response, field)
            if not response.next_page_token:
                return
            page.page_token = response.next_page_token

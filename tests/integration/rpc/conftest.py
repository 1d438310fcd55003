"""A server of the real chain, with handlers that show what the chain gave them, and who may call it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from remuda.compute.v1 import instance_pb2, instance_pb2_grpc
from remuda.image.v1 import image_pb2, image_pb2_grpc
from remuda.scheduler.v1 import registry_pb2, registry_pb2_grpc
from remuda_core.errors import Reason, RemudaError, not_found
from remuda_core.etcd.errors import OutcomeUnknown, Unavailable
from remuda_core.rpc import context
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.server import Service, ServiceServer
from remuda_core.rpc.tls import Tls
from remuda_core.telemetry.metrics import Metrics, code_label
from remuda_lab.pki import Authority, Identity, host_identity, service_identity, user_identity

HOST = "6f2a1c5e-6e0e-4a51-9d0e-0d6f6b1c1a01"
ADDRESS = IPv4Address("127.0.0.1")


class Pki:
    """An authority, and what it issued."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = Authority.create(directory / "ca")
        self.ca = self._authority.certificate.read_bytes()

    def tls(self, identity: Identity) -> Tls:
        pair = self._authority.issue(identity, self._directory / identity.common_name)
        return Tls(ca=self.ca, cert=pair.certificate.read_bytes(), key=pair.key.read_bytes())

    def service(self, name: str) -> Tls:
        return self.tls(service_identity(name, instance=name, addresses=[ADDRESS]))

    def host(self, uuid: str = HOST) -> Tls:
        return self.tls(host_identity("h1", uuid, ADDRESS))

    def user(self, name: str, *roles: str) -> Tls:
        return self.tls(user_identity(name, roles))


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@dataclass
class Seen:
    """What handlers saw, and what they wait for."""

    callers: list[str] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    remaining: list[float | None] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    raises: BaseException | None = None

    def note(self) -> None:
        self.callers.append(context.caller().principal)
        self.request_ids.append(context.request_id())
        self.remaining.append(context.remaining_seconds())
        self.started.set()


class Instances(instance_pb2_grpc.InstanceServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    async def GetInstance(
        self, request: instance_pb2.GetInstanceRequest, context: Any
    ) -> instance_pb2.Instance:
        self._seen.note()
        if self._seen.raises is not None:
            raise self._seen.raises
        if request.name.endswith("/absent"):
            raise not_found(request.name)
        if request.name.endswith("/slow"):
            await self._seen.release.wait()
        return instance_pb2.Instance(name=request.name)

    async def CreateInstance(self, request: instance_pb2.CreateInstanceRequest, context: Any) -> Any:
        self._seen.note()
        raise RemudaError(Reason.NO_HOST_FITS, "no host fits", metadata={"filter": "x" * 20_000})

    async def WatchInstances(
        self, request: instance_pb2.WatchInstancesRequest, context: Any
    ) -> AsyncIterator[instance_pb2.WatchInstancesResponse]:
        self._seen.note()
        try:
            for revision in (1, 2):
                yield instance_pb2.WatchInstancesResponse(revision=revision)
            if self._seen.raises is not None:
                raise self._seen.raises
            await self._seen.release.wait()
        except asyncio.CancelledError:
            self._seen.cancelled.set()
            raise


class Images(image_pb2_grpc.ImageServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    async def DeleteImage(self, request: image_pb2.DeleteImageRequest, context: Any) -> Empty:
        await context.abort(grpc.StatusCode.ABORTED, "in its own words")
        raise AssertionError("abort returns never")

    async def UploadImage(
        self, request_iterator: AsyncIterator[image_pb2.UploadImageRequest], context: Any
    ) -> image_pb2.UploadImageResponse:
        total = 0
        async for frame in request_iterator:
            self._seen.note()
            total += len(frame.data)
        return image_pb2.UploadImageResponse(committed_bytes=total)


class Registry(registry_pb2_grpc.HostRegistryServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    async def Attach(
        self, request_iterator: AsyncIterator[registry_pb2.AttachRequest], context: Any
    ) -> AsyncIterator[registry_pb2.AttachResponse]:
        self._seen.note()
        async for request in request_iterator:
            yield registry_pb2.AttachResponse(ack=registry_pb2.HeartbeatAck(seq=request.heartbeat.seq))


@dataclass
class Served:
    """A running server and how to reach it."""

    server: ServiceServer
    seen: Seen
    metrics: Metrics
    pki: Pki

    def channel(self, tls: Tls | None, *, identity: str = "") -> grpc.aio.Channel:
        return open_channel(f"127.0.0.1:{self.server.port}", tls, insecure_identity=identity)

    def code_count(self, method: str, code: str, kind: str = "unary") -> float | None:
        service, _, name = method.partition("/")
        labels = {"grpc_type": kind, "grpc_service": service, "grpc_method": name}
        begun = self.metrics.value("grpc_server_started_total", labels)
        ended = self.metrics.value("grpc_server_handled_total", {**labels, "grpc_code": code_label(code)})
        assert (begun or 0) >= (ended or 0)
        return ended


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(pki: Pki) -> Serve:
    """Starts a server; keyword arguments are those of ServiceServer."""

    @asynccontextmanager
    async def started(**arguments: Any) -> AsyncIterator[Served]:
        seen, metrics = Seen(), Metrics()
        services: Sequence[Service] = (
            Service(instance_pb2_grpc.add_InstanceServiceServicer_to_server, Instances(seen)),  # type: ignore[abstract]
            Service(image_pb2_grpc.add_ImageServiceServicer_to_server, Images(seen)),  # type: ignore[abstract]
            Service(registry_pb2_grpc.add_HostRegistryServiceServicer_to_server, Registry(seen)),
        )
        settings = {"listen": "127.0.0.1:0", "tls": pki.service("api"), "drain_seconds": 2.0, **arguments}
        async with ServiceServer(services=services, metrics=metrics, **settings) as server:
            yield Served(server=server, seen=seen, metrics=metrics, pki=pki)

    return started


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    async with serve() as running:
        yield running


@pytest.fixture(params=[Unavailable("etcd is away"), OutcomeUnknown("no answer"), TimeoutError()])
def trouble(request: pytest.FixtureRequest) -> Exception:
    error = request.param
    assert isinstance(error, Exception)
    return error

"""A gRPC server as every service runs it: the chain, health, reflection, TLS, a drain that loses nothing."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from remuda_core.auth.caller import Kind
from remuda_core.auth.identity import Tokens
from remuda_core.auth.policy import POLICY, Rule
from remuda_core.rpc.chain import Chain
from remuda_core.rpc.channel import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from remuda_core.rpc.outcome import Outcome
from remuda_core.rpc.tls import Tls, is_local, server_credentials
from remuda_core.rpc.validation import Validation
from remuda_core.telemetry.metrics import Metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ENDLESS: Collection[str] = frozenset(
    {
        "/remuda.compute.v1.InstanceService/WatchInstances",
        "/remuda.compute.v1.MigrationService/ControlMigration",
        "/remuda.compute.v1.OperationService/WatchOperation",
        "/remuda.scheduler.v1.HostRegistryService/Attach",
        "/remuda.scheduler.v1.LiveService/ControlMigration",
        "/remuda.scheduler.v1.LiveService/WatchProgress",
        # The jobs go on without their streams, and the scheduler joins them again.
        "/remuda.agent.v1.AgentService/RunStep",
        "/remuda.agent.v1.MigrationService/Migrate",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    }
)
"""Streams without an end of their own; ended with SHUTTING_DOWN as soon as the server drains."""

REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_V1ALPHA = reflection.SERVICE_NAME


@dataclass(frozen=True, slots=True)
class Service:
    """A servicer and the generated function that adds it: Service(add_XServicer_to_server, Handlers())."""

    add: Callable[[Any, Any], None]
    servicer: object


class ServiceServer:
    """Serves from __aenter__ to __aexit__, which drains.

    async with ServiceServer(listen="127.0.0.1:0", services=[...], tls=tls, metrics=metrics) as server:
        ... server.port ...
    """

    def __init__(
        self,
        *,
        listen: str,
        services: Sequence[Service],
        tls: Tls | None,
        metrics: Metrics,
        tokens: Tokens | None = None,
        token_listen: str = "",
        kinds: Collection[Kind] = frozenset(Kind),
        policy: Mapping[str, Rule] = POLICY,
        forwarded: Collection[str] = (),
        drain_seconds: float = 10.0,
        default_deadline_seconds: float = 60.0,
    ) -> None:
        """`listen`: host:port or unix:path; port 0 for any. With `tls` every client must show a certificate.

        `token_listen`: a second address for clients that have a bearer token instead; it asks for no
        certificate. (gRPC's Python API cannot leave that to the client on one port.)
        `forwarded`: see Chain.
        Raises ValueError when `tls` is None and an address can be reached from other machines.
        """
        if tls is None and not all(is_local(address) for address in (listen, token_listen) if address):
            raise ValueError(f"{listen}: without TLS a service listens on this machine only")
        self._listen, self._token_listen, self._tls = listen, token_listen, tls
        self._services, self._drain_seconds = services, drain_seconds
        self._health = health_aio.HealthServicer()
        self._chain = Chain(
            policy=policy,
            outcome=Outcome(metrics=metrics),
            validation=Validation(),
            tokens=tokens,
            insecure=tls is None,
            kinds=kinds,
            default_deadline_seconds=default_deadline_seconds,
            endless=ENDLESS,
            forwarded=forwarded,
        )
        self._stopped = False
        self.port = 0
        """TCP port of `listen`, once it serves."""
        self.token_port = 0
        self.draining = asyncio.Event()
        """Set when the server begins to stop: work of unknown length in a handler may look at it."""

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(interceptors=[self._chain], options=_OPTIONS)
        names = [self._add(service) for service in self._services]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._add_reflection([*names, "grpc.health.v1.Health"])
        self.port = self._bind(self._listen, client_certificate=True)
        if self._token_listen:
            self.token_port = self._bind(self._token_listen, client_certificate=False)
        await self._server.start()
        for name in names:
            await self.set_serving(name, serving=True)
        log.info("serving", listen=self._listen, port=self.port, services=names)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def set_serving(self, service: str, *, serving: bool) -> None:
        """What the health service says; `service` is a full name, empty for the whole server."""
        kinds = health_pb2.HealthCheckResponse
        await self._health.set(service, kinds.SERVING if serving else kinds.NOT_SERVING)

    async def stop(self) -> None:
        """Not healthy, no new calls, endless streams ended, `drain_seconds` for the others, then the rest is
        cancelled. Repeating it is harmless.
        """
        if self._stopped:
            return
        self._stopped = True
        self.draining.set()
        # Health goes first: balancers stop sending while calls are still being answered.
        await self._health.enter_graceful_shutdown()
        self._chain.drain()
        await self._server.stop(self._drain_seconds)
        log.info("stopped", listen=self._listen)

    def _add(self, service: Service) -> str:
        adder = _Adder(self._server)
        service.add(service.servicer, adder)
        return adder.name

    def _add_reflection(self, names: Sequence[str]) -> None:
        servicer = reflection.aio.ReflectionServicer([*names, _V1ALPHA, REFLECTION_V1])
        self._add(Service(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer))
        # The package knows v1alpha only; the messages of v1 are the same under another package name.
        method = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": method})
        self._server.add_generic_rpc_handlers((handler,))

    def _bind(self, address: str, *, client_certificate: bool) -> int:
        try:
            if self._tls is None:
                return self._server.add_insecure_port(address)
            credentials = server_credentials(self._tls, client_certificate=client_certificate)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error


class _Adder:
    """Stands in for the server, to learn the service's name from the generated code."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.name = ""

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.ServiceRpcHandler]) -> None:
        self.name = handlers[0].service_name()
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> None:
        """Does nothing in grpc.aio either; the generic handlers serve the calls."""


def run_service(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run a service's main on uvloop until it returns.

    `main` gets an event that SIGTERM or SIGINT sets; it waits for it inside its context managers, so that
    leaving them drains. A second signal cancels it.
    """

    async def supervised() -> None:
        stop = asyncio.Event()
        task = asyncio.ensure_future(main(stop))

        def on_signal() -> None:
            if stop.is_set():
                task.cancel()
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(supervised())


_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
    # Two processes on one port would share the calls between them in silence.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Our clients ping every 10 s while a call is open.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)

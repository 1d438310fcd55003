"""Console script `remuda-scheduler`: the object graph, top to bottom."""

import asyncio
import sys

from remuda.scheduler.v1 import live_pb2_grpc, registry_pb2_grpc
from remuda_core.auth import grants
from remuda_core.auth.caller import Kind
from remuda_core.config import load_or_exit
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.server import Service, ServiceServer, run_service
from remuda_core.telemetry import logs
from remuda_core.telemetry.http import telemetry_server
from remuda_core.telemetry.metrics import Metrics

from remuda_scheduler import gauges
from remuda_scheduler.engine.services import Timing
from remuda_scheduler.hosts.attach import HostRegistryService
from remuda_scheduler.leader import Leader, Parts
from remuda_scheduler.live.service import LiveService
from remuda_scheduler.sagas.registry import SAGAS
from remuda_scheduler.settings import SchedulerSettings
from remuda_scheduler.signing import GrantSigner

REFRESH_SECONDS = 1.0


def main() -> None:
    settings = load_or_exit(SchedulerSettings, sys.argv[1:], "REMUDA_SCHEDULER__")
    logs.configure(level=settings.log_level, service="scheduler")

    async def serve(stop: asyncio.Event) -> None:
        await _serve(settings, stop)

    run_service(serve)


async def _serve(settings: SchedulerSettings, stop: asyncio.Event) -> None:
    tls = settings.read_tls()
    metrics = Metrics()
    signer = GrantSigner(
        grants.private_key(settings.grant_key.read_bytes()), valid_seconds=settings.grant_seconds
    )
    async with Etcd.open(settings.etcd.client_config()) as etcd:
        leader = Leader(
            Parts(
                etcd=etcd,
                keys=Keys(settings.etcd.prefix),
                name=settings.name,
                endpoint=settings.advertise,
                election_ttl_seconds=settings.election_ttl_seconds,
                unreachable_after=settings.unreachable_after_seconds,
                timing=Timing(patience=settings.patience_seconds),
                open_channel=lambda target: open_channel(target, tls, insecure_identity="service/scheduler"),
                grants=signer,
                sagas=SAGAS,
                metrics=metrics,
            )
        )
        services = [
            Service(
                registry_pb2_grpc.add_HostRegistryServiceServicer_to_server,
                HostRegistryService(term=leader.term, heartbeat_interval_ms=settings.heartbeat_interval_ms),
            ),
            Service(live_pb2_grpc.add_LiveServiceServicer_to_server, LiveService(term=leader.term)),
        ]
        async with (
            telemetry_server(settings.metrics_listen, metrics),
            ServiceServer(
                listen=settings.listen,
                services=services,
                tls=tls,
                metrics=metrics,
                kinds={Kind.SERVICE, Kind.HOST, Kind.ANONYMOUS},
                drain_seconds=settings.drain_seconds,
            ),
        ):
            leading = asyncio.create_task(leader.run(), name="leader")
            stopping = asyncio.create_task(stop.wait())
            while not stop.is_set():
                gauges.show(metrics, leader.current)
                done, _ = await asyncio.wait(
                    {leading, stopping}, timeout=REFRESH_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if leading in done:
                    leading.result()
            # Resigned before the server drains: agents and the api are sent to the next leader at once.
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)

"""Console script `remuda-scheduler`: the object graph, top to bottom."""

import asyncio
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from remuda.scheduler.v1 import live_pb2_grpc, registry_pb2_grpc
from remuda_core.auth import grants
from remuda_core.auth.caller import Kind
from remuda_core.config import ConfigError, load_or_exit
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
from remuda_scheduler.turns.queue import Limits


def main() -> None:
    settings = load_or_exit(SchedulerSettings, sys.argv[1:], "REMUDA_SCHEDULER_")
    logs.configure(level=settings.log_level, service="scheduler")

    async def serve(stop: asyncio.Event) -> None:
        await _serve(settings, stop)

    try:
        run_service(serve)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"remuda-scheduler: {error}\n")
        raise SystemExit(2) from error


async def _serve(settings: SchedulerSettings, stop: asyncio.Event) -> None:
    tls = settings.read_tls()
    metrics = Metrics()
    signer = GrantSigner(_grant_key(settings), valid_seconds=settings.grant_seconds)
    async with Etcd.open(settings.etcd.client_config()) as etcd:
        leader = Leader(
            Parts(
                etcd=etcd,
                keys=Keys(settings.etcd.prefix),
                name=settings.name,
                endpoint=settings.advertise,
                election_ttl_seconds=settings.election_ttl_seconds,
                unreachable_after=settings.unreachable_after_seconds,
                # Two heartbeats: a host that lives has said something within them.
                duplicate_window=2 * settings.heartbeat_interval_ms / 1000,
                probe_reuse=settings.probe_reuse_seconds,
                migration_limits=Limits(**settings.migration_limits.model_dump()),
                timing=Timing(
                    patience=settings.patience_seconds, preflight_valid=settings.probe_reuse_seconds
                ),
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
            telemetry_server(
                settings.metrics_listen, metrics, refresh=lambda: gauges.show(metrics, leader.current)
            ),
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
            done, _ = await asyncio.wait({leading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if leading in done:
                leading.result()  # it never ends well: etcd refuses us for good
            # Resigned before the server drains: agents and the api are sent to the next leader at once.
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)


def _grant_key(settings: SchedulerSettings) -> Ed25519PrivateKey:
    try:
        return grants.private_key(settings.grant_key.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"configuration: grant_key: {error}") from error


if __name__ == "__main__":
    main()

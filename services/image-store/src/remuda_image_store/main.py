"""remuda-image-store: the process."""

import asyncio
import contextlib
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from remuda.image.v1.chunk_pb2_grpc import add_ChunkServiceServicer_to_server
from remuda.image.v1.image_pb2_grpc import add_ImageServiceServicer_to_server
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.auth import grants
from remuda_core.auth.caller import Kind
from remuda_core.config import ConfigError, load_or_exit
from remuda_core.etcd.cache import PrefixCache
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.memory import keep_freed_memory
from remuda_core.rpc.server import Service, ServiceServer, run_service
from remuda_core.telemetry import logs
from remuda_core.telemetry.http import telemetry_server
from remuda_core.telemetry.metrics import Metrics

from remuda_image_store.activation import Activation
from remuda_image_store.blob_names import BlobEntry, BlobNames, decode
from remuda_image_store.blobs import Blobs
from remuda_image_store.content import Content
from remuda_image_store.damage import Damage
from remuda_image_store.filling import Filling
from remuda_image_store.handlers.chunks import Chunks
from remuda_image_store.handlers.images import SERIALIZED, Images
from remuda_image_store.importing import Importer
from remuda_image_store.known_chunks import Lengths
from remuda_image_store.records import Records
from remuda_image_store.removal import Remover
from remuda_image_store.scrubbing import Scrubber
from remuda_image_store.settings import ENVIRONMENT, Settings
from remuda_image_store.sweeping import Sweeper
from remuda_image_store.usage import Usage

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Where it listens, once it does."""

    port: int
    metrics_port: int


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Serving]:
    """One replica, from serving to drained. Raises ConfigError, OSError."""
    metrics = Metrics()
    grant_key = _grant_key(settings.grant_public_key)
    blobs = _backend(settings.backend)
    keys = Keys(settings.etcd.prefix)
    holder = f"image-store/{socket.gethostname()}/{uuid.uuid4()}"
    async with contextlib.AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(Etcd.open(settings.etcd.client_config()))
        cache = await stack.enter_async_context(
            PrefixCache(etcd, keys.images, lambda kv: store_pb2.ImageRecord.FromString(kv.value))
        )
        names = await stack.enter_async_context(
            PrefixCache[BlobEntry](etcd, keys.blob_names, lambda kv: decode(kv, keys))
        )
        records, content = Records(etcd, keys), Content(blobs, BlobNames(etcd, keys, names))
        activation, lengths = Activation(etcd, records, content), Lengths(records, content)
        importer = await stack.enter_async_context(
            Importer(
                records,
                content,
                activation,
                scratch=settings.scratch_dir,
                scratch_bytes=settings.scratch_bytes,
                largest_bytes=settings.largest_disk_bytes,
            )
        )
        damage = Damage(etcd, records, content, metrics)
        content.on_damage = damage.suspect
        sweeper = Sweeper(
            etcd,
            records,
            content,
            metrics,
            holder=holder,
            grace_seconds=settings.gc_grace_seconds,
            every_seconds=settings.gc_every_seconds,
            on_lost=damage.suspect,
        )
        scrubber = Scrubber(
            etcd,
            records,
            content,
            damage,
            metrics,
            holder=holder,
            bytes_per_second=settings.scrub_bytes_per_second,
            round_seconds=settings.scrub_round_seconds,
        )
        filling = Filling(
            etcd, records, content, lengths, activation, largest_bytes=settings.largest_disk_bytes
        )
        chunks = Chunks(records, content, lengths, filling, damage, grant_key, metrics)
        remover, usage = Remover(records, content), Usage(blobs, metrics)
        await stack.enter_async_context(_background(remover.run(cache), "remover"))
        await stack.enter_async_context(_background(sweeper.run(), "garbage collection"))
        await stack.enter_async_context(_background(damage.run(), "damaged chunks"))
        await stack.enter_async_context(_background(scrubber.run(), "scrub"))
        await stack.enter_async_context(_background(usage.run(cache, settings.count_seconds), "usage"))
        telemetry = await stack.enter_async_context(
            telemetry_server(
                settings.metrics_listen,
                metrics,
                healthy=lambda: "" if cache.connected else "etcd cannot be reached",
            )
        )
        server = await stack.enter_async_context(
            ServiceServer(
                listen=settings.listen,
                services=[
                    Service(add_ImageServiceServicer_to_server, Images(records, content, importer, metrics)),
                    Service(add_ChunkServiceServicer_to_server, chunks),
                ],
                tls=settings.read_tls(),
                metrics=metrics,
                # Users go through the api, which holds the policy of projects and quotas.
                kinds=frozenset({Kind.SERVICE, Kind.HOST}),
                forwarded=SERIALIZED,
                drain_seconds=settings.drain_seconds,
            )
        )
        yield Serving(port=server.port, metrics_port=telemetry.port)


def main() -> None:
    settings = load_or_exit(Settings, sys.argv[1:], ENVIRONMENT)
    keep_freed_memory()
    logs.configure(level=settings.log_level, service="image-store")

    async def run(stop: asyncio.Event) -> None:
        async with serving(settings):
            await stop.wait()

    try:
        run_service(run)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"remuda-image-store: {error}\n")
        raise SystemExit(2) from error


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("background work failed", work=task.get_name(), exc_info=task.exception())


def _grant_key(path: Path) -> Ed25519PublicKey:
    try:
        return grants.public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"grant_public_key: {error}") from error


def _backend(url: str) -> Blobs:
    try:
        return Blobs.open(url)
    except (OSError, ValueError) as error:
        raise ConfigError(f"backend: {error}") from error


if __name__ == "__main__":
    main()

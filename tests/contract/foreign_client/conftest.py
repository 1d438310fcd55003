"""A gateway as its own process, with TLS, and certificates for clients."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from remuda_core.testing.etcd import EtcdServer, free_ports
from remuda_core.testing.waiting import wait_for
from remuda_lab.pki import Authority, Identity, KeyPair, service_identity, user_identity

LOOPBACK = IPv4Address("127.0.0.1")
START_SECONDS = 30


@dataclass(kw_only=True)
class GatewayProcess:
    """`remuda-api`, started the way an operator starts it."""

    address: str
    authority: Authority
    directory: Path
    process: subprocess.Popen[bytes]

    def certificate(self, identity: Identity) -> KeyPair:
        return self.authority.issue(identity, self.directory / identity.common_name)

    def channel(self, pair: KeyPair | None) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            self.authority.certificate.read_bytes(),
            private_key=pair.key.read_bytes() if pair else None,
            certificate_chain=pair.certificate.read_bytes() if pair else None,
        )
        return grpc.aio.secure_channel(self.address, credentials)

    def log(self) -> str:
        return (self.directory / "log").read_text()[-2000:]

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def started(etcd_server: EtcdServer, etcd_prefix: str, tmp_path: Path) -> Iterator[GatewayProcess]:
    authority = Authority.create(tmp_path / "ca")
    own = authority.issue(service_identity("api", instance="api-1", addresses=[LOOPBACK]), tmp_path / "own")
    (port,) = free_ports(1)
    config = tmp_path / "api.toml"
    config.write_text(
        f'listen = "127.0.0.1:{port}"\ndrain_seconds = 2\n'
        f'[tls]\nca = "{authority.certificate}"\ncert = "{own.certificate}"\nkey = "{own.key}"\n'
        f'[etcd]\nendpoints = ["{etcd_server.endpoint}"]\nprefix = "{etcd_prefix}"\n'
    )
    command = [str(Path(sys.executable).with_name("remuda-api")), "--config", str(config)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "REMUDA_API_LOG_LEVEL": "debug"})
    try:
        yield GatewayProcess(
            address=f"127.0.0.1:{port}", authority=authority, directory=tmp_path, process=process
        )
    finally:
        process.kill()
        process.wait()


@pytest_asyncio.fixture
async def gateway(started: GatewayProcess) -> AsyncIterator[GatewayProcess]:
    """Serving."""
    pair = started.certificate(user_identity("probe", []))
    async with started.channel(pair) as channel:
        await wait_for(
            lambda: asyncio.wait_for(_ready(channel), 60),
            timeout=START_SECONDS,
            last_status=started.log,
            ignoring=(TimeoutError,),
        )
    yield started


async def _ready(channel: grpc.aio.Channel) -> bool:
    await channel.channel_ready()
    return True


@pytest.fixture
def admin(gateway: GatewayProcess) -> KeyPair:
    return gateway.certificate(user_identity("root", ["admin", "project:demo"]))


@pytest.fixture
def stranger(gateway: GatewayProcess) -> KeyPair:
    """Of the same authority, and nobody in the mesh."""
    return gateway.certificate(Identity(common_name="stranger", path=None))

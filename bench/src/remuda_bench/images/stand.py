"""Where transfers are measured: etcd, api and image store on this machine, and the plain stream's two hops.

Everything is a process of its own with mutual TLS over loopback; no lab is needed. Left by `with`, it is gone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from remuda_core.rpc.channel import MAX_MESSAGE_BYTES
from remuda_core.rpc.tls import Tls, channel_credentials
from remuda_core.testing.etcd import EtcdServer, free_ports
from remuda_core.testing.waiting import wait_for_sync
from remuda_lab.cluster.toml_text import render
from remuda_lab.pki import Authority, Identity, KeyPair, service_identity

from remuda_bench.images import plain

_LOCAL = IPv4Address("127.0.0.1")
_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    channel: grpc.Channel
    """To the api, as an administrator."""
    plain: plain.Client
    directory: Path
    """For the files that are sent and received: of the file system that the store is on."""


@contextmanager
def stand(directory: Path) -> Iterator[Stand]:
    """Raises OSError, TimeoutError, ChildProcessError when something does not come up."""
    with ExitStack() as stack:
        # As in production: a transaction is on the disk when it is answered.
        etcd = EtcdServer(directory=directory / "etcd", fsync=True)
        stack.callback(etcd.stop)
        etcd.start()
        authority = Authority.create(directory / "ca")
        store_port, store_metrics, api_port, api_metrics = free_ports(4)
        grant_key = directory / "grant.pem"
        public = Ed25519PrivateKey.generate().public_key()
        grant_key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        common = {"etcd": {"endpoints": [etcd.endpoint]}}
        store = {
            **common,
            "listen": f"{_LOCAL}:{store_port}",
            "metrics_listen": f"{_LOCAL}:{store_metrics}",
            "backend": f"file://{directory}/backend",
            "scratch_dir": str(directory / "scratch"),
            "grant_public_key": str(grant_key),
        }
        api = {
            **common,
            "listen": f"{_LOCAL}:{api_port}",
            "metrics_listen": f"{_LOCAL}:{api_metrics}",
            "image_stores": [f"{_LOCAL}:{store_port}"],
        }
        for name, settings in (("image-store", store), ("api", api)):
            pair = authority.issue(
                service_identity(name, instance=name, addresses=[_LOCAL]), directory / name
            )
            _service(stack, name, {**settings, "tls": _files(authority, pair)}, directory / name)
        user = Identity(common_name="bench", path="user/bench", addresses=(_LOCAL,), roles=("admin",))
        pair = authority.issue(user, directory / "user")
        tls = Tls(**{name: Path(path).read_bytes() for name, path in _files(authority, pair).items()})
        sink = _hop(stack, authority, pair)
        client = plain.Client(_hop(stack, authority, pair, sink), tls)
        stack.callback(client.close)
        options = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),)
        channel = grpc.secure_channel(f"{_LOCAL}:{api_port}", channel_credentials(tls), options=options)
        stack.callback(channel.close)
        grpc.channel_ready_future(channel).result(_START_SECONDS)
        yield Stand(channel=channel, plain=client, directory=directory)


def _files(authority: Authority, pair: KeyPair) -> dict[str, str]:
    return {"ca": str(authority.certificate), "cert": str(pair.certificate), "key": str(pair.key)}


def _service(stack: ExitStack, name: str, settings: dict[str, Any], directory: Path) -> None:
    config, log = directory / "config.toml", directory / "log"
    config.write_text(render(settings))
    module = f"remuda_{name.replace('-', '_')}.main"
    with log.open("wb") as stream:
        process = _process(stack, "-m", module, "--config", str(config), stdout=stream, stderr=stream)

    def serves() -> bool:
        if process.poll() is not None:
            raise ChildProcessError(log.read_text())
        return '"event": "serving"' in log.read_text()

    wait_for_sync(serves, timeout=_START_SECONDS, last_status=log.read_text)


def _hop(stack: ExitStack, authority: Authority, pair: KeyPair, following: str = "") -> str:
    """Its address."""
    files = _files(authority, pair)
    arguments = [files["ca"], files["cert"], files["key"], *([following] if following else [])]
    process = _process(stack, "-m", "remuda_bench.images.plain", *arguments, stdout=subprocess.PIPE)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    port = process.stdout.readline().strip()
    if not port:
        raise ChildProcessError("the plain stream does not come up")
    return f"{_LOCAL}:{port.decode()}"


def _process(stack: ExitStack, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.DEVNULL, **options)

    def end() -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)
    return process

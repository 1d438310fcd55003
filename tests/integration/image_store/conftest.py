"""Image stores over the session's etcd, each test with a prefix and a backend of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from remuda_core.config import EtcdSettings
from remuda_core.etcd.client import Etcd
from remuda_core.testing.etcd import EtcdServer
from remuda_image_store.settings import Settings
from remuda_image_store.testing import Cloud


@pytest_asyncio.fixture
async def cloud(
    etcd_server: EtcdServer, etcd: Etcd, etcd_prefix: str, tmp_path: Path
) -> AsyncIterator[Cloud]:
    key, public = Ed25519PrivateKey.generate(), tmp_path / "grant.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    settings = Settings(
        listen="127.0.0.1:0",
        drain_seconds=1.0,
        etcd=EtcdSettings(endpoints=(etcd_server.endpoint,), prefix=etcd_prefix),
        backend=f"file://{tmp_path}/backend",
        scratch_dir=tmp_path / "scratch",
        grant_public_key=public,
    )
    made = Cloud(etcd=etcd, settings=settings, grant_key=key, directory=tmp_path)
    async with made.stack:
        yield made

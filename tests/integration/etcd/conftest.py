"""An etcd that a test may kill, fill or pause, and a network that it may cut."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from remuda_core.etcd.client import Etcd
from remuda_core.testing.etcd import EtcdServer, etcd_server
from remuda_core.testing.tcp_proxy import TcpProxy, tcp_proxy


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EtcdServer]:
    """This test's own etcd. With fsync, because it is there to be killed."""
    with etcd_server(tmp_path / "etcd", election_timeout_ms=200, fsync=True) as server:
        yield server


@pytest_asyncio.fixture
async def own_etcd(own_server: EtcdServer) -> AsyncIterator[Etcd]:
    async with Etcd.open(own_server.config()) as client:
        yield client


@pytest_asyncio.fixture
async def proxy(etcd_server: EtcdServer) -> AsyncIterator[TcpProxy]:
    """A way to the session's etcd that can be cut."""
    async with tcp_proxy(etcd_server.endpoint) as one:
        yield one


@pytest_asyncio.fixture
async def behind_proxy(etcd_server: EtcdServer, proxy: TcpProxy) -> AsyncIterator[Etcd]:
    async with Etcd.open(etcd_server.config(endpoints=(proxy.endpoint,))) as client:
        yield client

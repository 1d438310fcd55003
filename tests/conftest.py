"""Limits and settings that hold for every suite."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import pytest_asyncio
from remuda_core.etcd.client import Etcd
from remuda_core.testing.etcd import EtcdServer
from remuda_core.testing.etcd import etcd_server as running_etcd

E2E = Path(__file__).parent / "e2e"
# A guest that boots under TCG on a crowded machine takes minutes, and a scene may be set up four times.
E2E_TIMEOUT_SECONDS = 480

# The machine's cores are shared with etcd, QEMU and other suites: how long one example takes says nothing.
hypothesis.settings.register_profile("remuda", deadline=None, print_blob=True)
hypothesis.settings.load_profile("remuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(E2E) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(E2E_TIMEOUT_SECONDS))


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One etcd for the whole session; a test that kills or fills one starts its own."""
    with running_etcd(tmp_path_factory.mktemp("etcd"), election_timeout_ms=200) as server:
        yield server


@pytest_asyncio.fixture
async def etcd(etcd_server: EtcdServer) -> AsyncIterator[Etcd]:
    async with Etcd.open(etcd_server.config()) as client:
        yield client


@pytest.fixture
def etcd_prefix() -> str:
    """A prefix that no other test uses."""
    return f"/test/{uuid.uuid4()}/"

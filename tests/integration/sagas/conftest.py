"""A cluster for sagas: real etcd, hosts in memory, a leader that can be killed at any write."""

from collections.abc import AsyncIterator

import pytest_asyncio
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_scheduler.testing.cluster import Cluster, open_cluster


@pytest_asyncio.fixture
async def cluster(etcd: Etcd, etcd_prefix: str) -> AsyncIterator[Cluster]:
    async with open_cluster(etcd, Keys(etcd_prefix)) as made:
        yield made

"""Who sweeps which shards: keys under one lease, so that replicas share the work and do not repeat it.

They save work; that nothing wrong is removed does not depend on them (blob_names.py).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Protocol

from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import EtcdError
from remuda_core.etcd.keys import Keys
from remuda_core.etcd.lease import LeaseKeeper

_TTL_SECONDS = 10
# Part of the TTL that must be left for something to be begun.
_MARGIN = 0.3
# Well below etcd's limit of operations in one transaction.
_AT_ONCE = 64
_TRIES = 3


class Held(Protocol):
    """Shards that this replica may sweep."""

    shards: frozenset[str]

    def fence(self, shard: str) -> ops.Compare: ...
    def check(self) -> None: ...


class ShardLocks:
    def __init__(self, keys: Keys, keeper: LeaseKeeper, epochs: dict[str, int]) -> None:
        self.shards = frozenset(epochs)
        self._keys = keys
        self._keeper = keeper
        self._epochs = epochs

    def fence(self, shard: str) -> ops.Compare:
        """Fails once the shard is somebody else's."""
        return ops.create_is(self._keys.gc_shard(shard), self._epochs[shard])

    def check(self) -> None:
        """Raises STORE_UNAVAILABLE when the lease has ended, or is too old to begin something."""
        margin = self._keeper.ttl_seconds * _MARGIN
        if self._keeper.lost or time.monotonic() > self._keeper.valid_until - margin:
            raise RemudaError(Reason.STORE_UNAVAILABLE, "the shards' lease was lost", retry_after_seconds=1.0)


@asynccontextmanager
async def shard_locks(etcd: Etcd, keys: Keys, shards: Collection[str], holder: str) -> AsyncIterator[Held]:
    """Those of `shards` that nobody holds, which may be none. Who is killed keeps them for the TTL."""
    granted_at = time.monotonic()
    lease, ttl = await etcd.grant_lease(_TTL_SECONDS)
    keeper = LeaseKeeper(
        etcd.config,
        lease_id=lease,
        ttl_seconds=ttl,
        granted_at=granted_at,
        on_lost=lambda _: None,
        token=lambda: etcd.transport.token,
    )
    keeper.start()
    try:
        epochs = await _take(etcd, keys, sorted(shards), holder.encode(), lease)
        yield ShardLocks(keys, keeper, epochs)
    finally:
        keeper.stop()
        with contextlib.suppress(EtcdError):
            await etcd.revoke_lease(lease, timeout=2.0)
        await asyncio.to_thread(keeper.join, 1.0)


async def _take(etcd: Etcd, keys: Keys, shards: Sequence[str], holder: bytes, lease: int) -> dict[str, int]:
    for _ in range(_TRIES):
        wanted = iter(await _free(etcd, keys, shards))
        while batch := list(islice(wanted, _AT_ONCE)):
            # Somebody else may be quicker: then these are looked at again.
            await etcd.txn(
                compare=[ops.absent(keys.gc_shard(shard)) for shard in batch],
                success=[ops.put(keys.gc_shard(shard), holder, lease=lease) for shard in batch],
            )
        held = {
            kv.key.removeprefix(keys.gc_shards): kv.create_revision
            async for page in etcd.pages(keys.gc_shards)
            for kv in page.kvs
            if kv.lease == lease
        }
        if held:
            return held
    return {}


async def _free(etcd: Etcd, keys: Keys, shards: Sequence[str]) -> list[str]:
    held = {kv.key async for page in etcd.pages(keys.gc_shards) for kv in page.kvs}
    return [shard for shard in shards if keys.gc_shard(shard) not in held]

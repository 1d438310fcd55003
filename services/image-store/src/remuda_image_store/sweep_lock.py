"""The one lock of all image stores: who removes chunks, or verifies them before an image becomes ACTIVE.

Both see the other's finished work only: a chunk that verification has found is not removed before the image
that refers to it counts, and the other way round. The lock is a key under a lease, whoever holds it compares
its create_revision in every transaction, and asks `check` before every removal of blobs.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.election import Election, Leadership

_TTL_SECONDS = 10


class Held:
    def __init__(self, key: str, term: Leadership) -> None:
        self._term = term
        self.fence = ops.create_is(key, term.epoch)
        """A comparison that fails once the lock is somebody else's."""

    def check(self) -> None:
        """Raises STORE_UNAVAILABLE when the lock is lost, or too old to begin something."""
        if not self._term.safe:
            raise RemudaError(Reason.STORE_UNAVAILABLE, "the sweep lock was lost", retry_after_seconds=1.0)


@asynccontextmanager
async def sweep_lock(etcd: Etcd, key: str, holder: str) -> AsyncIterator[Held]:
    """Waits for the lock; a holder that was killed keeps it for the TTL."""
    async with Election(etcd, key, holder.encode(), _TTL_SECONDS) as election:
        yield Held(key, await election.campaign())

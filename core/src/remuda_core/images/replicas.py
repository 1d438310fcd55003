"""Any replica of the image store will do: which one is asked, and when it is given up.

Errors that may pass are met at the next replica after a pause; those that another one would answer the same
way are raised at once.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import grpc

from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.status import from_rpc_error

if TYPE_CHECKING:
    from remuda.image.v1.chunk_pb2_grpc import ChunkServiceAsyncStub

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 3.0
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)


class Trouble(NamedTuple):
    """What is said when trying again has not helped."""

    reason: Reason
    text: str


class Replicas:
    """The one that answered last is asked first."""

    def __init__(self, stores: Sequence["ChunkServiceAsyncStub"]) -> None:
        if not stores:
            raise ValueError("no image store to ask")
        self._stores = tuple(stores)
        self._preferred = 0

    def current(self) -> "ChunkServiceAsyncStub":
        return self._stores[self._preferred]

    def next(self) -> None:
        self._preferred = (self._preferred + 1) % len(self._stores)


class Patience:
    """Failures in a row of one piece of work."""

    def __init__(self, replicas: Replicas, what: str, *, tries: int) -> None:
        """`what`: a clause for messages, e.g. "image 1234 cannot be fetched"."""
        self._replicas = replicas
        self._what = what
        self._tries = tries
        self._failures = 0

    def succeeded(self) -> None:
        self._failures = 0

    async def failed(self, trouble: Trouble) -> None:
        """Returns when it is time for another try, at the next replica. Raises RemudaError when it is not."""
        self._failures += 1
        _log.warning("%s, try %d: %s", self._what, self._failures, trouble.text)
        if self._failures >= self._tries:
            raise RemudaError(trouble.reason, f"{self._what}: {trouble.text}") from None
        self._replicas.next()
        await asyncio.sleep(min(_PAUSE_SECONDS * 2**self._failures, _LONGEST_PAUSE_SECONDS))


def passing(error: grpc.aio.AioRpcError) -> Trouble:
    """Raises what the store says when another try would get the same answer."""
    if error.code() is grpc.StatusCode.DATA_LOSS:
        return Trouble(Reason.DIGEST_MISMATCH, error.details() or "")
    if error.code() not in _PASSING:
        raise from_rpc_error(error) from error
    return Trouble(Reason.STORE_UNAVAILABLE, f"{error.code().name}: {error.details()}")

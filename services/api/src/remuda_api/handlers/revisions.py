"""Read-your-writes over replicas: mutations say at which revision, reads may ask to be at least that new."""

import asyncio
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc.aio import ServicerContext
from remuda_core.errors import invalid_argument
from remuda_core.etcd.cache import PrefixCache
from remuda_core.rpc.context import timeout_for

from remuda_api.admission.mutations import Answer
from remuda_api.reading import Reads

R = TypeVar("R", bound=Message)

REVISION_KEY = "remuda-revision"
"""Trailer of mutations; with it, a read at any replica shows the change."""
MIN_REVISION_KEY = "remuda-min-revision"
_WAIT_SECONDS = 5.0
_REVISION = re.compile(r"[0-9]{1,19}\Z")


def answered(context: ServicerContext[Any, Any], answer: Answer[R]) -> R:
    if answer.revision:
        add_revision(context, answer.revision)
    return answer.response


def add_revision(context: ServicerContext[Any, Any], revision: int) -> None:
    # What the chain has put there stays.
    before = tuple(context.trailing_metadata() or ())
    context.set_trailing_metadata((*before, (REVISION_KEY, str(revision))))


async def fresh(context: ServicerContext[Any, Any], reads: Reads, *caches: PrefixCache[Any]) -> None:
    """Waits until the caches show what the caller has seen.

    Raises RemudaError REVISION_AHEAD, and Unavailable when they do not show it in time.
    """
    wanted = min_revision(context.invocation_metadata() or ())
    if all(cache.revision >= wanted for cache in caches):
        return
    # Waiting costs etcd a look at each prefix now and then: nobody makes it wait for what will not come.
    await reads.require_revision(wanted)
    seconds = timeout_for(_WAIT_SECONDS)
    await asyncio.gather(*(cache.wait_revision(wanted, seconds) for cache in caches))


def min_revision(metadata: Iterable[tuple[str, str | bytes]]) -> int:
    """0: none is asked for. Raises RemudaError INVALID_ARGUMENT."""
    for key, value in metadata:
        if key == MIN_REVISION_KEY:
            if not isinstance(value, str) or not _REVISION.match(value):
                raise invalid_argument(MIN_REVISION_KEY, "is no revision")
            return int(value)
    return 0

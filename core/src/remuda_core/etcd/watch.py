"""A watch that goes on over lost connections and restarts of etcd, without gap and without duplicate.

The position is the last revision delivered; every new stream starts at the one after it. etcd sends the
changes of one revision together (`fragment` pieces are put together here), so that the position never stands
inside a revision.

Progress: only etcd's own periodic notifications move the position while nothing happens. A client may also
ask for one (WatchProgressRequest), but before 3.4.25 / 3.5.8 that answer can overtake events still on their
way (etcd-io/etcd#15220), and a position taken from it is a gap after the next reconnect.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Final, Self

import grpc.aio
from remuda.etcd.v1 import etcd_pb2 as pb

from remuda_core.etcd import wire
from remuda_core.etcd.errors import (
    AuthenticationFailed,
    Compacted,
    EtcdError,
    HistoryRewritten,
    PermissionDenied,
    Unavailable,
    Verdict,
    as_error,
    judge,
)
from remuda_core.etcd.model import Event, WatchBatch, event
from remuda_core.etcd.transport import Transport, backoff, describe

_log = logging.getLogger(__name__)

_REFUSALS: Final = ("permission denied", "invalid auth token", "user name is empty")


class _Interrupted(Exception):
    """The stream ended in a way that a new one may mend."""


class _Refused(Exception):
    """etcd refuses the watch for lack of rights, or because the token is stale: it says the same for both."""


class Watch:
    """Async iterator of WatchBatch; use with `async with`, which ends the stream.

    Iteration raises Compacted when the next revision is gone (list again), HistoryRewritten when etcd was
    restored from a backup, PermissionDenied, AuthenticationFailed, and Unavailable once the client is closed.
    Losing etcd raises nothing: it goes on when etcd is back.
    """

    def __init__(self, transport: Transport, *, key: bytes, range_end: bytes, start_revision: int) -> None:
        self._transport = transport
        self._key = key
        self._range_end = range_end
        self._next_revision = start_revision
        self._batches = self._run()
        self.connected = False
        """Whether etcd has accepted the watch and the stream stands."""
        self.reconnects = 0
        self.last_error = ""
        """What ended the last stream."""

    @property
    def next_revision(self) -> int:
        """The first revision not delivered yet; 0 before etcd has told where "now" is."""
        return self._next_revision

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # RuntimeError: another task is reading. The stream is that task's, and ends when it is cancelled.
        with contextlib.suppress(RuntimeError):
            await self._batches.aclose()

    def __aiter__(self) -> AsyncGenerator[WatchBatch, None]:
        return self._batches

    async def _run(self) -> AsyncGenerator[WatchBatch, None]:
        pauses = backoff()
        refusals = 0
        while True:
            token = None
            try:
                token = await self._transport.login()
                async for batch in self._stream(token):
                    # The watch stood: the next trouble starts with short pauses again.
                    pauses, refusals = backoff(), 0
                    yield batch
            except _Refused as refused:
                self.last_error = str(refused)
                refusals += 1
                if refusals > 2 or token is None:
                    raise PermissionDenied(self.last_error) from None
                self._transport.forget_token(token)
            except (_Interrupted, Unavailable) as error:
                if self._transport.closed:
                    raise Unavailable("the client is closed") from None
                self.last_error = str(error)
            finally:
                self.connected = False
            self.reconnects += 1
            _log.debug(
                "watch of %r interrupted, resuming at %d: %s", self._key, self._next_revision, self.last_error
            )
            await asyncio.sleep(next(pauses))

    async def _stream(self, token: str | None) -> AsyncGenerator[WatchBatch, None]:
        """One stream from the position on, until it breaks."""
        call = self._transport.stream(wire.WATCH, token=token)
        pending: list[Event] = []
        try:
            await call.write(self._create_request())
            while True:
                message = await call.read()
                if not isinstance(message, pb.WatchResponse):
                    raise _Interrupted("etcd ended the stream")
                self._check(message)
                if message.created:
                    batch = await self._created(message)
                else:
                    batch = self._delivered(message, pending)
                if batch is not None:
                    yield batch
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from error
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise _Interrupted(describe(error)) from error
        except asyncio.CancelledError as error:
            if not self._transport.was_closed():
                raise
            raise _Interrupted("the client was closed") from error
        finally:
            call.cancel()

    def _create_request(self) -> pb.WatchRequest:
        return pb.WatchRequest(
            create_request=pb.WatchCreateRequest(
                key=self._key,
                range_end=self._range_end,
                start_revision=self._next_revision,
                progress_notify=True,
                fragment=True,
            )
        )

    def _check(self, message: pb.WatchResponse) -> None:
        if message.compact_revision:
            raise Compacted(
                f"revision {self._next_revision} is compacted, the oldest is {message.compact_revision}",
                compact_revision=message.compact_revision,
            )
        if message.canceled:
            if any(text in message.cancel_reason for text in _REFUSALS):
                raise _Refused(message.cancel_reason)
            raise _Interrupted(message.cancel_reason or "canceled by etcd")

    async def _created(self, message: pb.WatchResponse) -> WatchBatch | None:
        self.connected = True
        seen = message.header.revision
        if self._next_revision == 0:
            # etcd fixed "now" as the revision after this one; keep it, or a reconnect would skip changes.
            self._next_revision = seen + 1
            return WatchBatch(revision=seen, events=())
        if seen + 1 < self._next_revision:
            await self._check_history()
        return None

    async def _check_history(self) -> None:
        """The member is behind us: merely lagging, or has the whole cluster gone back in time?"""
        response = await self._transport.call(wire.RANGE, pb.RangeRequest(key=self._key, count_only=True))
        if response.header.revision + 1 < self._next_revision:
            raise HistoryRewritten(
                f"etcd is at revision {response.header.revision}, {self._next_revision - 1} was seen before"
            )

    def _delivered(self, message: pb.WatchResponse, pending: list[Event]) -> WatchBatch | None:
        pending.extend(event(one) for one in message.events)
        if message.fragment:
            return None
        if pending:
            # Not the header's revision: a watch that catches up gets old events under the newest header.
            revision = pending[-1].kv.mod_revision
            batch = WatchBatch(revision=revision, events=tuple(pending))
            pending.clear()
        else:
            # A progress notification. A lagging member may be behind what another one has delivered.
            revision = message.header.revision
            if revision < self._next_revision:
                return None
            batch = WatchBatch(revision=revision, events=())
        self._next_revision = revision + 1
        return batch


def _translate(error: grpc.aio.AioRpcError) -> EtcdError | _Interrupted | _Refused:
    details = error.details() or ""
    match judge(error.code(), details):
        case Verdict.TOKEN:
            return _Refused(details)
        case Verdict.FATAL:
            fatal = as_error(error.code(), details)
            if isinstance(fatal, PermissionDenied | AuthenticationFailed):
                return _Refused(details)
            return fatal
        case _:
            return _Interrupted(describe(error))

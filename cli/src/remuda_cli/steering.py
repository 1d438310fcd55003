"""A client of ControlMigration: commands down, answers and progress up, over broken connections.

Commands without an answer are sent again on the next stream under the same id, which has one effect.
"""

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from remuda.compute.v1 import migration_pb2 as pb

from remuda_cli.gateway import Gateway
from remuda_cli.rpc_failure import code_of, from_rpc_error

SILENT_SECONDS = 60.0
"""Without any message for so long, over all reconnections, the gateway counts as unavailable."""
_PAUSE_SECONDS = 0.5
_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Steering:
    """Of one migration. `send` and `close` may be called from another thread than the one that reads."""

    def __init__(
        self, gateway: Gateway, migration: str, *, note: Callable[[str], None] = lambda _: None
    ) -> None:
        self._gateway = gateway
        self._migration = migration
        self._client_id = str(uuid.uuid4())
        self._note = note
        self._open: dict[str, pb.ControlMigrationRequest] = {}
        self._outbox: queue.SimpleQueue[pb.ControlMigrationRequest | None] = queue.SimpleQueue()
        self._call: Any = None
        self._closed = threading.Event()

    def send(self, command: pb.ControlMigrationRequest) -> str:
        """Returns the id that the answer will carry."""
        sent = pb.ControlMigrationRequest()
        sent.CopyFrom(command)
        sent.command_id = command.command_id or str(uuid.uuid4())
        self._open[sent.command_id] = sent
        self._outbox.put(sent)
        return sent.command_id

    def events(self, *, timeout: float | None = None) -> Iterator[pb.ControlMigrationResponse]:
        """Until the migration is over or `close`. Raises Failure; TimeoutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        heard = time.monotonic()
        while not self._closed.is_set():
            left = None if deadline is None else max(0.001, deadline - time.monotonic())
            try:
                for response in self._stream(left):
                    heard = time.monotonic()
                    if response.HasField("result"):
                        self._open.pop(response.result.command_id, None)
                    yield response
                    if response.HasField("ended"):
                        return
            except grpc.RpcError as error:
                if self._closed.is_set():
                    return
                code = code_of(error)
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError from None
                if code not in _BROKEN or time.monotonic() - heard > SILENT_SECONDS:
                    raise from_rpc_error(error) from None
            self._note("the connection broke, connecting again")
            self._closed.wait(_PAUSE_SECONDS)

    def close(self) -> None:
        self._closed.set()
        self._outbox.put(None)
        if self._call is not None:
            self._call.cancel()

    def _stream(self, timeout: float | None) -> Iterator[pb.ControlMigrationResponse]:
        # The stream before this one may still wait for a command: it must not take those of this one.
        before, self._outbox = self._outbox, queue.SimpleQueue()
        before.put(None)
        for command in list(self._open.values()):
            self._outbox.put(command)
        self._call = self._gateway.migrations.ControlMigration(self._requests(self._outbox), timeout=timeout)
        yield from self._call

    def _requests(
        self, outbox: "queue.SimpleQueue[pb.ControlMigrationRequest | None]"
    ) -> Iterator[pb.ControlMigrationRequest]:
        attach = pb.AttachToMigration(name=self._migration, client_id=self._client_id)
        yield pb.ControlMigrationRequest(attach=attach)
        while (command := outbox.get()) is not None:
            yield command

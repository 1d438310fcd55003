"""Keeping a lease alive from a thread of its own.

Why a thread: a long placement or a slow codec blocks the event loop for seconds, and a leader must not lose
its lease for that. Why the blocking gRPC API in it, and not a second event loop: grpc.aio runs the events of
all loops of a process through one poller and one socket, which every loop reads; a thread without a loop
shares nothing with the one that may be blocked.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

import grpc
from remuda.etcd.v1 import etcd_pb2 as pb

from remuda_core.etcd import wire
from remuda_core.etcd.config import EtcdConfig

_log = logging.getLogger(__name__)

_Stub: TypeAlias = "grpc.StreamStreamMultiCallable[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]"

_RETRY_SECONDS = 0.1


class LeaseKeeper:
    """Keeps one lease alive until `stop`, or until it is lost.

    `valid_until` (on time.monotonic()) counts from the moment *before* the last successful keep-alive was
    sent: etcd started its own count later, so that the lease cannot have ended before it. The lease counts as
    lost when etcd says that it is gone, or when `valid_until` passes: from then on somebody else may hold
    what the lease guards.
    """

    def __init__(
        self,
        config: EtcdConfig,
        *,
        lease_id: int,
        ttl_seconds: int,
        granted_at: float,
        on_lost: Callable[[str], None],
        token: Callable[[], str | None],
    ) -> None:
        """`granted_at`: time.monotonic() before the grant was sent. `on_lost`: called once, in the thread."""
        self.lease_id = lease_id
        self.ttl_seconds = ttl_seconds
        self.valid_until = granted_at + ttl_seconds
        self.lost = False
        self._config = config
        self._on_lost = on_lost
        self._token = token
        self._stopping = threading.Event()
        self._call: grpc.RpcContext | None = None
        self._thread = threading.Thread(target=self._run, name=f"lease-{lease_id:x}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; does not revoke the lease. Returns at once, also from the event loop."""
        self._stopping.set()
        call = self._call
        if call is not None:
            call.cancel()

    def join(self, timeout: float) -> bool:
        """Wait for the thread's end, `timeout` in seconds. Whether it has ended. Blocks."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        credentials, options = self._config.credentials(), self._config.channel_options()
        target = self._config.target()
        channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        with channel:
            stub: _Stub = channel.stream_stream(
                wire.LEASE_KEEP_ALIVE.path,
                pb.LeaseKeepAliveRequest.SerializeToString,
                pb.LeaseKeepAliveResponse.FromString,
            )
            reason = self._keep(stub)
        if reason is not None and not self._stopping.is_set():
            self.lost = True
            _log.warning("lease %x lost: %s", self.lease_id, reason)
            self._on_lost(reason)

    def _keep(self, stub: _Stub) -> str | None:
        """Returns why the lease is lost, or None when told to stop."""
        trouble = ""
        pause = 0.0
        while not self._stopping.wait(pause):
            sent = time.monotonic()
            try:
                ttl = self._once(stub)
            except grpc.RpcError as error:
                trouble = _describe(error)
                pause = _RETRY_SECONDS
            else:
                if ttl <= 0:
                    return "etcd says that it is gone"
                self.valid_until = sent + ttl
                pause = max(0.0, self.ttl_seconds / 3 - (time.monotonic() - sent))
            # Also after a success: the process may have been stopped between sending and reading.
            if time.monotonic() >= self.valid_until:
                return f"no keep-alive in {self.ttl_seconds} s: {trouble or 'this process stood still'}"
            pause = min(pause, max(0.0, self.valid_until - time.monotonic()))
        return None

    def _once(self, stub: _Stub) -> int:
        """One keep-alive on a stream of its own, so that each try may go to another member."""
        remaining = self.valid_until - time.monotonic()
        self._call = call = stub(
            iter([pb.LeaseKeepAliveRequest(id=self.lease_id)]),
            timeout=max(0.05, min(self.ttl_seconds / 3, remaining)),
            metadata=wire.metadata(token=self._token(), needs_leader=False),
        )
        try:
            return next(call).ttl
        finally:
            call.cancel()
            self._call = None


def _describe(error: grpc.RpcError) -> str:
    # What the blocking API raises is the call itself, which the base class does not say.
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    return f"{code().name}: {details()}" if code and details else repr(error)

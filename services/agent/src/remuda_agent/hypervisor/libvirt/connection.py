"""One connection to the host's libvirtd, kept alive, with threads of its own.

    call -> thread -> libvirt          (libvirt-python releases the GIL; calls run side by side)
    event thread -> event loop         (callbacks only post; they must not call libvirt)

libvirtd may restart at any time: registrations die with the connection, so it is opened again, everything is
registered again, and subscribers are told to look at everything.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import libvirt
from remuda_core.errors import RemudaError

from remuda_agent.daemon_thread import in_daemon_thread
from remuda_agent.hypervisor.model import hypervisor_error

T = TypeVar("T")
_log = logging.getLogger(__name__)

SHORT_CALLS = 8
LONG_CALLS = 16
"""Migrations at once; in threads of their own, so that they never keep a look at a domain waiting."""
CALL_SECONDS = 60.0
KEEPALIVE_SECONDS = 2
KEEPALIVE_MISSES = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

Setup = Callable[[Any], None]

_loop_lock = threading.Lock()
_loop_runs = False


def start_event_loop() -> None:
    """libvirt's own event loop, once per process; it has to be there before the first connection."""
    global _loop_runs
    with _loop_lock:
        if _loop_runs:
            return
        libvirt.virEventRegisterDefaultImpl()
        # Errors come as exceptions; libvirt's habit of printing them too would break JSON logs.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()
        _loop_runs = True


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def failed(error: libvirt.libvirtError) -> RemudaError:
    """libvirt's words and code, for people and programs."""
    return hypervisor_error(
        str(error), libvirt_code=str(error.get_error_code()), libvirt_domain=str(error.get_error_domain())
    )


class Connection:
    """Made by `open_connection`. ``setup`` runs in a thread with every new virConnect, ``restored`` in the
    event loop after it.
    """

    def __init__(self, uri: str, *, setup: Setup, restored: Callable[[], None]) -> None:
        self._uri = uri
        self._setup = setup
        self._restored = restored
        self._short = ThreadPoolExecutor(SHORT_CALLS, thread_name_prefix="libvirt")
        self._long = asyncio.Semaphore(LONG_CALLS)
        self._opening = threading.Lock()
        self._open: Any = None
        self._closed = asyncio.Event()
        self._lost = asyncio.Event()

    async def call(self, function: Callable[[Any], T], *, repeat: bool = False) -> T:
        """Run ``function(virConnect)`` in a thread. Raises RemudaError for libvirt's, and after 60 s.

        ``repeat``: harmless to do twice, so it is tried again when the connection broke under it.
        """
        try:
            return await self._attempt(function)
        except libvirt.libvirtError as error:
            if not (repeat and self._is_dead()):
                raise failed(error) from error
        try:
            return await self._attempt(function)
        except libvirt.libvirtError as error:
            raise failed(error) from error

    async def call_long(self, function: Callable[[Any], T], *, begun: asyncio.Event | None = None) -> T:
        """For what takes as long as it takes. Raises libvirtError as it is.

        Cancelling before ``begun`` is set leaves the function uncalled, later it only stops the waiting.
        """
        async with self._long:
            # After the queue, where a connection could have grown old.
            connection = await asyncio.get_running_loop().run_in_executor(self._short, self._connected)
            if begun is not None:
                begun.set()
            return await in_daemon_thread(lambda: function(connection), name="libvirt-long")

    async def _attempt(self, function: Callable[[Any], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await loop.run_in_executor(self._short, lambda: function(self._connected()))
        except TimeoutError as error:
            raise hypervisor_error(f"libvirt did not answer within {CALL_SECONDS:g} s") from error

    def _is_dead(self) -> bool:
        current = self._open
        try:
            return current is None or not current.isAlive()
        except libvirt.libvirtError:
            return True

    def _connected(self) -> Any:
        """In a thread. The open connection, opened when there is none."""
        with self._opening:
            if self._closed.is_set():
                raise hypervisor_error("the connection to libvirt is closed")
            if not self._is_dead():
                return self._open
            self._drop()
            fresh = libvirt.open(self._uri)
            fresh.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_MISSES)
            fresh.registerCloseCallback(self._on_close, None)
            self._setup(fresh)
            self._open = fresh
            return fresh

    def _drop(self) -> None:
        if self._open is not None:
            with suppress(libvirt.libvirtError):
                self._open.unregisterCloseCallback()
            with suppress(libvirt.libvirtError):
                self._open.close()
            self._open = None

    def _on_close(self, _connection: object, reason: int, _opaque: object) -> None:
        # In libvirt's event thread.
        _log.warning("the connection to libvirt ended (reason %d)", reason)
        with suppress(RuntimeError):  # the agent's own loop may have ended first
            self._event_loop.call_soon_threadsafe(self._lost.set)

    async def _keep(self) -> None:
        """Reconnect as soon as the connection is lost, because events come only while there is one."""
        while True:
            await self._lost.wait()
            self._lost.clear()
            pause = _FIRST_PAUSE
            while True:
                try:
                    await asyncio.get_running_loop().run_in_executor(self._short, self._connected)
                    break
                except (libvirt.libvirtError, RemudaError) as error:
                    _log.info("libvirt is not back yet: %s", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            self._restored()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open until the end of the block. Raises RemudaError when libvirtd is not there at the start."""
        self._event_loop = asyncio.get_running_loop()
        start_event_loop()
        await self.call(lambda connection: connection.getLibVersion())
        keeper = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            self._closed.set()
            with suppress(libvirt.libvirtError):
                await self._event_loop.run_in_executor(self._short, self._drop)
            self._short.shutdown(wait=False)

"""Blocking calls that may hang for minutes: a name server, a dead file server, another host's libvirt."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from remuda_core.errors import Reason, RemudaError

from remuda_agent.daemon_thread import in_daemon_thread

T = TypeVar("T")

MOST_HANGING = 64


class BoundedCalls:
    """Each call has a thread of its own, so that one that hangs keeps neither the next one waiting nor the
    agent from ending; ``most`` of them may hang at a time, because nobody can end a thread.
    """

    def __init__(self, name: str, *, most: int = MOST_HANGING) -> None:
        """``name`` is for people: what is being called."""
        self._name = name
        self._places = threading.BoundedSemaphore(most)
        self._most = most

    async def call(self, function: Callable[[], T], *, seconds: float) -> T:
        """The function's result or exception. Raises TimeoutError after ``seconds``, UNAVAILABLE while too
        many earlier calls still hang.
        """
        if not self._places.acquire(blocking=False):
            raise RemudaError(Reason.UNAVAILABLE, f"{self._most} earlier calls of {self._name} still hang")

        def work() -> T:
            try:
                return function()
            finally:
                self._places.release()

        async with asyncio.timeout(seconds):
            return await in_daemon_thread(work, name=self._name)

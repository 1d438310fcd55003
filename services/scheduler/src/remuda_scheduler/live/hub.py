"""Fans the progress of running operations out to whoever watches. Implements ports.ProgressHub."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from remuda.compute.v1.operation_pb2 import Progress
from remuda_core.ids import OperationId


class ProgressHub:
    """Keeps the newest progress per running operation; a slow watcher skips, it never holds up the work."""

    def __init__(self) -> None:
        self._latest: dict[OperationId, Progress] = {}
        self._watchers: dict[OperationId, set[asyncio.Queue[Progress | None]]] = {}

    def publish(self, operation_id: OperationId, progress: Progress) -> None:
        known = self._latest.get(operation_id)
        # Percent never falls, whoever measured it; but each kind of work (the base image's bytes, then the
        # guest's) starts from its own zero.
        if known is not None and known.WhichOneof("detail") == progress.WhichOneof("detail"):
            progress.percent = max(progress.percent, known.percent)
        self._latest[operation_id] = progress
        self._offer(operation_id, progress)

    def finish(self, operation_id: OperationId) -> None:
        """The operation is over: its watchers end."""
        self._latest.pop(operation_id, None)
        self._offer(operation_id, None)

    def running(self) -> Iterator[tuple[OperationId, Progress]]:
        """The newest progress of every operation that has told any."""
        yield from self._latest.items()

    def end_all(self) -> None:
        """The leadership is over: watchers look for the next leader."""
        for operation in list(self._watchers):
            self.finish(operation)

    async def watch(self, operation_id: OperationId) -> AsyncIterator[Progress]:
        """The newest progress first, then what follows, until the operation is over."""
        queue: asyncio.Queue[Progress | None] = asyncio.Queue(maxsize=1)
        if (latest := self._latest.get(operation_id)) is not None:
            queue.put_nowait(latest)
        self._watchers.setdefault(operation_id, set()).add(queue)
        try:
            while (progress := await queue.get()) is not None:
                yield progress
        finally:
            watchers = self._watchers[operation_id]
            watchers.discard(queue)
            if not watchers:
                del self._watchers[operation_id]

    def _offer(self, operation_id: OperationId, progress: Progress | None) -> None:
        for queue in self._watchers.get(operation_id, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(progress)

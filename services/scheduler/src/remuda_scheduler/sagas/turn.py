"""A move waits until as few guests are on their way as the limits want."""

import asyncio
from contextlib import suppress

from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.operation_pb2 import Progress, QueueProgress
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import Reason, RemudaError

from remuda_scheduler.engine.run import Run, cancelled
from remuda_scheduler.sagas.moving import seconds_left
from remuda_scheduler.turns.queue import Place

_Run = Run[LiveMigrateState]


def its_turn(run: _Run) -> bool:
    """Sure only while the placement lock is held."""
    return run.services.turns.place(run.operation_id) is None


async def wait_for_turn(run: _Run, request: LiveMigrateInstanceRequest) -> None:
    """Until `its_turn` may be true. Raises CANCELLED, MIGRATION_TIMEOUT."""
    shown: Place | None = None
    while (place := run.services.turns.place(run.operation_id)) is not None:
        if run.cancelled.is_set():
            raise cancelled()
        if seconds_left(run, request) <= 0:
            raise RemudaError(
                Reason.MIGRATION_TIMEOUT, f"its time was up while it waited for its turn ({place.limit})"
            )
        if place != shown:
            shown = place
            run.publish(_progress(place))
        with suppress(TimeoutError):
            async with asyncio.timeout(run.services.timing.look_again):
                await run.cancelled.wait()


def _progress(place: Place) -> Progress:
    queue = QueueProgress(position=place.position, limit=place.limit, allowed=place.allowed)
    return Progress(message="waiting for its turn", queue=queue)

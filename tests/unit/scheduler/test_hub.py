"""Live progress for whoever watches: the newest, never backwards, until the operation is over."""

import asyncio

import pytest
from remuda.compute.v1.operation_pb2 import Progress
from remuda.image.v1.source_pb2 import TransferCounts
from remuda_core.ids import OperationId
from remuda_scheduler.live.hub import ProgressHub

OPERATION = OperationId("o")


async def watching(hub: ProgressHub) -> "asyncio.Task[list[int]]":
    async def watch() -> list[int]:
        return [progress.percent async for progress in hub.watch(OPERATION)]

    task = asyncio.create_task(watch())
    await asyncio.sleep(0)
    return task


async def test_a_watcher_gets_the_newest_first_and_ends_with_the_operation() -> None:
    hub = ProgressHub()
    hub.publish(OPERATION, Progress(percent=10))
    hub.publish(OPERATION, Progress(percent=20))
    task = await watching(hub)
    await asyncio.sleep(0)
    hub.publish(OPERATION, Progress(percent=30))
    await asyncio.sleep(0)
    hub.finish(OPERATION)
    assert await task == [20, 30]


async def test_a_slow_watcher_skips_and_holds_up_nobody() -> None:
    hub = ProgressHub()
    task = await watching(hub)
    for percent in range(100):
        hub.publish(OPERATION, Progress(percent=percent))
    await asyncio.sleep(0)
    hub.finish(OPERATION)
    assert await task == [99]


async def test_percent_never_falls_whoever_measured_it() -> None:
    hub = ProgressHub()
    hub.publish(OPERATION, Progress(percent=60))
    hub.publish(OPERATION, Progress(percent=5, message="of the next leader's first look"))
    ((operation, progress),) = hub.running()
    assert (operation, progress.percent) == (OPERATION, 60)
    assert progress.message.startswith("of the next")


async def test_a_snapshot_that_is_begun_again_does_not_fall_back() -> None:
    hub = ProgressHub()
    hub.publish(OPERATION, Progress(percent=70, snapshot=TransferCounts(read_bytes=7)))
    hub.publish(OPERATION, Progress(percent=1, snapshot=TransferCounts(read_bytes=1)))
    ((_, progress),) = hub.running()
    assert (progress.percent, progress.snapshot.read_bytes) == (70, 1)


async def test_the_end_of_the_leadership_ends_every_watcher() -> None:
    hub = ProgressHub()
    first, second = await watching(hub), await watching(hub)
    hub.end_all()
    assert (await first, await second) == ([], [])


async def test_a_watcher_that_went_away_is_forgotten() -> None:
    hub = ProgressHub()
    task = await watching(hub)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hub.publish(OPERATION, Progress(percent=1))
    hub.finish(OPERATION)
    assert list(hub.running()) == []

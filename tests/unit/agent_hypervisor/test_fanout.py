"""Events for any number of subscribers."""

from datetime import UTC, datetime

from remuda_agent.hypervisor import EventKind, HypervisorEvent
from remuda_agent.hypervisor.fanout import Fanout
from remuda_core.ids import InstanceId


def event(name: str) -> HypervisorEvent:
    return HypervisorEvent(
        kind=EventKind.STARTED, instance_id=InstanceId(name), detail="booted", time=datetime.now(UTC)
    )


async def test_every_subscriber_hears_everything_after_one_relist_until_the_end() -> None:
    fanout = Fanout()
    async with fanout.subscribe() as first, fanout.subscribe() as second:
        fanout.put(event("a"))
        fanout.close()
        for events in (first, second):
            assert [one.kind async for one in events] == [EventKind.RELIST, EventKind.STARTED]


async def test_a_slow_reader_loses_details_and_is_told_to_list() -> None:
    fanout = Fanout(backlog=3)
    async with fanout.subscribe() as events:
        for number in range(10):
            fanout.put(event(str(number)))
        fanout.close()
        heard = [one.kind async for one in events]
    assert heard[0] is EventKind.RELIST
    assert len(heard) <= 3


async def test_whoever_has_left_is_not_written_to_any_more() -> None:
    fanout = Fanout(backlog=1)
    async with fanout.subscribe() as events:
        pass
    fanout.put(event("a"))
    fanout.close()
    assert (await anext(events)).kind is EventKind.RELIST

"""Long calls to libvirt wait for their turn, and can be given up only while they do."""

import asyncio
import threading
from typing import Any

import pytest
from remuda_agent.hypervisor.libvirt import connection
from remuda_agent.hypervisor.libvirt.connection import Connection


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setattr(connection, "LONG_CALLS", 1)
    made = Connection("test:///default", setup=lambda _: None, restored=lambda: None)
    monkeypatch.setattr(made, "_connected", lambda: "connected")
    return made


async def test_a_long_call_that_is_given_up_in_the_queue_is_never_made(one_at_a_time: Connection) -> None:
    leave, made = threading.Event(), []
    first, second = asyncio.Event(), asyncio.Event()

    def block(_: Any) -> None:
        made.append("first")
        leave.wait(10)

    running = asyncio.create_task(one_at_a_time.call_long(block, begun=first))
    await asyncio.wait_for(first.wait(), 5)
    queued = asyncio.create_task(one_at_a_time.call_long(lambda _: made.append("second"), begun=second))
    await asyncio.sleep(0.05)
    assert not second.is_set()
    queued.cancel()
    leave.set()
    await asyncio.gather(running, queued, return_exceptions=True)
    assert (made, second.is_set(), queued.cancelled()) == (["first"], False, True)
    # Its turn was not lost with it.
    assert await one_at_a_time.call_long(lambda given: given) == "connected"

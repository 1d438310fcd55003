"""Blocking calls that never keep the agent from ending."""

import asyncio
import subprocess
import sys
import threading

import pytest
from remuda_agent.daemon_thread import in_daemon_thread


async def test_result_and_exception_come_back() -> None:
    assert await in_daemon_thread(lambda: 7, name="t") == 7

    def broken() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await in_daemon_thread(broken, name="t")


async def test_cancelling_stops_waiting_and_not_the_call() -> None:
    go_on, through = threading.Event(), threading.Event()

    def call() -> None:
        go_on.wait(10)
        through.set()

    task = asyncio.create_task(in_daemon_thread(call, name="t"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert await asyncio.to_thread(through.wait, 10)
    await asyncio.sleep(0)


STOPPED_IN_THE_MIDDLE = """
import asyncio, time
from remuda_agent.daemon_thread import in_daemon_thread
async def main():
    task = asyncio.create_task(in_daemon_thread(lambda: time.sleep(600), name="t"))
    await asyncio.sleep(0.05)
    task.cancel()
asyncio.run(main())
"""


def test_the_process_ends_while_a_call_still_blocks() -> None:
    subprocess.run([sys.executable, "-c", STOPPED_IN_THE_MIDDLE], check=True, timeout=20)

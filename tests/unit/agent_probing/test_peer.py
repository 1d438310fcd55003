"""Another host's libvirt: opening it may hang for minutes."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from remuda_agent.hypervisor.libvirt.peer import Peers, peer_uri
from remuda_core.errors import Reason, RemudaError


class Connection:
    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = threading.Event()

    def getHostname(self) -> str:
        return self.name

    def close(self) -> None:
        self.closed.set()


async def test_the_peer_is_opened_as_a_migration_opens_it_and_closed_again() -> None:
    opened: list[str] = []
    connection = Connection("b")

    def open_uri(uri: str) -> Connection:
        opened.append(uri)
        return connection

    assert await Peers(open_uri=open_uri).hostname("b.example", transport="tls", patience=5) == "b"
    assert opened == ["qemu+tls://b.example/system"] == [peer_uri("b.example", "tls")]
    assert connection.closed.is_set()


async def test_a_peer_that_hangs_is_given_up_and_closed_when_it_answers_at_last() -> None:
    answer, late = threading.Event(), Connection("late")

    def open_uri(uri: str) -> Connection:
        if "deaf" in uri:
            answer.wait(30)
            return late
        return Connection("b")

    peers = Peers(open_uri=open_uri)
    started = time.monotonic()
    with pytest.raises(RemudaError, match=r"deaf/system did not answer within 0\.1 s") as given_up:
        await peers.hostname("deaf", transport="tcp", patience=0.1)
    assert given_up.value.reason is Reason.HYPERVISOR_ERROR
    assert await peers.hostname("b", transport="tcp", patience=5) == "b"
    assert time.monotonic() - started < 5
    answer.set()
    assert await asyncio.to_thread(late.closed.wait, 10)


ENDS_WHILE_ONE_HANGS = """
import asyncio, time
from remuda_agent.hypervisor.libvirt.peer import Peers
from remuda_core.errors import RemudaError
async def main():
    try:
        await Peers(open_uri=lambda uri: time.sleep(600)).hostname("b", transport="tls", patience=0.1)
    except RemudaError as error:
        print(error.message)
asyncio.run(main())
"""


def test_an_agent_ends_while_a_peer_still_hangs() -> None:
    argv = [sys.executable, "-c", ENDS_WHILE_ONE_HANGS]
    done = subprocess.run(argv, check=True, timeout=20, capture_output=True, text=True)
    assert "did not answer within 0.1 s" in done.stdout

"""A connection to a name whose name server hangs."""

import socket
import threading
import time

import pytest
from remuda_agent.probing.connecting import Connector
from remuda_agent.probing.resolving import Resolver


async def test_names_that_hang_keep_neither_their_caller_nor_the_next_one_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hang = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hang.wait(30))
    connector = Connector(Resolver())
    started = time.monotonic()
    for _ in range(8):  # more than a pool of threads would have
        answer = await connector.connect("host2", 49152, b"sixteen bytes or more", patience=0.05)
        assert answer.error == "no answer within 0.05 s"
    assert time.monotonic() - started < 5
    hang.set()

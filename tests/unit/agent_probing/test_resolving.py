"""The host's resolver, which may not answer at all."""

import socket
import threading
import time

import pytest
from remuda_agent.probing import resolving
from remuda_agent.probing.resolving import Resolver


async def test_addresses_come_once_and_in_the_resolvers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*_: object, **__: object) -> list[tuple[object, ...]]:
        addresses = ("10.77.0.12", "10.77.0.11", "10.77.0.12")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    answer = await Resolver().resolve("host1")
    assert list(answer.addresses) == ["10.77.0.12", "10.77.0.11"]
    assert answer.error == ""


async def test_a_resolver_that_hangs_is_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hang.wait(30))
    monkeypatch.setattr(resolving, "RESOLVE_SECONDS", 0.1)
    started = time.monotonic()
    answer = await Resolver().resolve("host1")
    assert answer.error == "the resolver did not answer within 0.1 s"
    assert time.monotonic() - started < 5
    hang.set()


async def test_a_name_that_is_none_is_an_answer_too() -> None:
    answer = await Resolver().resolve("x" * 70 + ".example")
    assert answer.error
    assert not answer.addresses

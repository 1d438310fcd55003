"""Pings a guest from the fabric and measures how long it was away.

Only the socket is made in the fabric's network; the threads run in the calling process.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from types import TracebackType

from remuda_lab.namespaces import socket_in_network
from remuda_lab.processes import ProcessRef
from remuda_lab.waiting import wait_for

_ECHO_REQUEST, _ECHO_REPLY = 8, 0
_HEADER = struct.Struct("!BBHHH")
LOST_AFTER_SECONDS = 1.0
"""An unanswered probe younger than this counts as lost only when a later one was answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PingReport:
    """Seconds are of a monotonic clock. ``longest_gap`` is the longest time between two replies, and between
    the last one and the end of the measurement when that is longer."""

    sent: int
    received: int
    lost: int
    longest_gap_seconds: float
    median_round_trip_seconds: float | None

    def __str__(self) -> str:
        return (
            f"{self.sent} pings, {self.lost} lost, longest gap {self.longest_gap_seconds * 1000:.0f} ms"
            + (
                ""
                if self.median_round_trip_seconds is None
                else f", round trip {self.median_round_trip_seconds * 1e3:.1f} ms"
            )
        )


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    words: tuple[int, ...] = struct.unpack(f"!{len(data) // 2}H", data)
    total = sum(words)
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def echo_request(identifier: int, sequence: int) -> bytes:
    """An ICMP echo request without payload (RFC 792)."""
    draft = _HEADER.pack(_ECHO_REQUEST, 0, 0, identifier, sequence)
    return _HEADER.pack(_ECHO_REQUEST, 0, checksum(draft), identifier, sequence)


def reply_sequence(packet: bytes, identifier: int) -> int | None:
    """The sequence number of our echo reply in an IPv4 packet; None for any other packet."""
    header_length = (packet[0] & 0x0F) * 4
    if len(packet) < header_length + _HEADER.size:
        return None
    kind, _, _, got, sequence = _HEADER.unpack_from(packet, header_length)
    return sequence if kind == _ECHO_REPLY and got == identifier else None


def summarise(sent: Sequence[float], replies: Sequence[tuple[int, float]], *, end: float) -> PingReport:
    """What times of sending (by sequence number) and replies (sequence, time) come to."""
    times = sorted(when for _, when in replies)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    gaps.append(end - times[-1] if times else end - sent[0] if sent else 0.0)
    answered = {sequence for sequence, _ in replies}
    newest = max(answered, default=-1)
    lost = sum(
        n not in answered and (n < newest or when < end - LOST_AFTER_SECONDS) for n, when in enumerate(sent)
    )
    trips = sorted(when - sent[sequence] for sequence, when in replies)
    return PingReport(
        sent=len(sent),
        received=len(answered),
        lost=lost,
        longest_gap_seconds=max(gaps),
        median_round_trip_seconds=trips[len(trips) // 2] if trips else None,
    )


@dataclass(slots=True)
class Pinger:
    """Pings ``address`` each ``interval`` seconds from the network of ``init`` while it is entered.

    with Pinger(fabric.init, address) as pinger:
        pinger.wait_answer(timeout=60)
        ...
        print(pinger.report())
    """

    init: ProcessRef
    address: IPv4Address
    interval: float = 0.01
    _sent: list[float] = field(default_factory=list)
    _replies: list[tuple[int, float]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _socket: socket.socket | None = None

    def __enter__(self) -> Pinger:
        self._socket = socket_in_network(self.init.pid, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.settimeout(0.2)
        identifier = int.from_bytes(os.urandom(2))
        for target in (self._send, self._receive):
            thread = threading.Thread(target=target, args=(self._socket, identifier), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._socket is not None:
            self._socket.close()

    def wait_answer(self, *, timeout: float) -> None:
        """Wait for one more reply than there is now. ``timeout`` in seconds. Raises WaitTimeout."""
        before = len(self._replies)
        wait_for(
            f"{self.address} answers a ping",
            lambda: len(self._replies) > before,
            timeout=timeout,
            interval=0.01,
        )

    def report(self) -> PingReport:
        """What was measured so far."""
        return summarise(list(self._sent), list(self._replies), end=time.monotonic())

    def _send(self, sock: socket.socket, identifier: int) -> None:
        while not self._stop.is_set():
            packet = echo_request(identifier, len(self._sent) & 0xFFFF)
            self._sent.append(time.monotonic())
            # No route or no neighbour right now is a lost ping, which is what we measure.
            with contextlib.suppress(OSError):
                sock.sendto(packet, (str(self.address), 0))
            self._stop.wait(self.interval)

    def _receive(self, sock: socket.socket, identifier: int) -> None:
        while not self._stop.is_set():
            try:
                packet, (source, _) = sock.recvfrom(2048)
            except OSError:
                continue
            now = time.monotonic()
            sequence = reply_sequence(packet, identifier)
            if sequence is None or source != str(self.address):
                continue
            # 16 bits on the wire: the newest probe with that number is meant.
            newest = len(self._sent) - 1
            self._replies.append((newest - ((newest - sequence) & 0xFFFF), now))

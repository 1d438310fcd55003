"""The arithmetic of the pinger."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remuda_lab.pinger import checksum, echo_request, reply_sequence, summarise

IP_HEADER = bytes([0x45]) + bytes(19)


def reply(identifier: int, sequence: int, *, kind: int = 0) -> bytes:
    return IP_HEADER + struct.pack("!BBHHH", kind, 0, 0, identifier, sequence)


def test_the_checksum_is_that_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_a_request_sums_to_zero_with_its_own_checksum(identifier: int, sequence: int) -> None:
    assert checksum(echo_request(identifier, sequence)) == 0


def test_only_our_own_echo_replies_count() -> None:
    assert reply_sequence(reply(7, 42), 7) == 42
    assert reply_sequence(reply(8, 42), 7) is None
    assert reply_sequence(reply(7, 42, kind=8), 7) is None
    assert reply_sequence(reply(7, 42)[:24], 7) is None


def test_a_header_with_options_is_skipped() -> None:
    packet = bytes([0x46]) + bytes(23) + struct.pack("!BBHHH", 0, 0, 0, 7, 5)
    assert reply_sequence(packet, 7) == 5


def test_the_longest_gap_lies_between_replies() -> None:
    sent = [0.0, 0.1, 0.2, 0.3, 0.4]
    report = summarise(sent, [(0, 0.001), (1, 0.101), (4, 0.403)], end=0.41)
    assert report.longest_gap_seconds == pytest.approx(0.302)
    assert (report.sent, report.received, report.lost) == (5, 3, 2)
    assert report.median_round_trip_seconds == pytest.approx(0.001)


def test_a_guest_that_never_comes_back_is_a_gap_up_to_the_end() -> None:
    report = summarise([0.0, 1.0, 2.0, 3.0], [(0, 0.001)], end=4.0)
    assert report.longest_gap_seconds == pytest.approx(3.999)
    assert report.lost == 2, "the one sent a second ago may still be answered"


def test_without_any_reply_everything_is_a_gap() -> None:
    report = summarise([1.0, 2.0], [], end=5.0)
    assert report.longest_gap_seconds == 4.0
    assert report.median_round_trip_seconds is None
    assert report.lost == 2


def test_nothing_sent_is_nothing_lost() -> None:
    report = summarise([], [], end=5.0)
    assert (report.sent, report.lost, report.longest_gap_seconds) == (0, 0, 0.0)

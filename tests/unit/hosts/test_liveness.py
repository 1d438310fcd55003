"""Silence makes a host unreachable, never dead; a new leader starts every clock anew."""

import pytest
from remuda.compute.v1.host_pb2 import Host
from remuda_scheduler.hosts.liveness import host_state


def state(stored: "Host.State.ValueType", *, attached: bool, silent: float) -> "Host.State.ValueType":
    return host_state(stored, attached=attached, silent_seconds=silent, limit_seconds=10.0)


def test_an_attached_host_that_was_just_heard_is_up() -> None:
    assert state(Host.STATE_UP, attached=True, silent=0.1) == Host.STATE_UP


def test_a_host_that_a_new_leader_has_not_heard_is_unknown_until_the_limit() -> None:
    assert state(Host.STATE_UP, attached=False, silent=9.9) == Host.STATE_UNKNOWN
    assert state(Host.STATE_UP, attached=False, silent=10.0) == Host.STATE_UNREACHABLE


def test_an_open_stream_without_heartbeats_does_not_keep_a_host_up() -> None:
    assert state(Host.STATE_UP, attached=True, silent=10.0) == Host.STATE_UNREACHABLE


def test_a_new_leader_does_not_forget_that_a_host_was_unreachable() -> None:
    assert state(Host.STATE_UNREACHABLE, attached=False, silent=0.0) == Host.STATE_UNREACHABLE


@pytest.mark.parametrize("stored", [Host.STATE_ENROLLING, Host.STATE_FENCED])
def test_a_host_that_never_came_or_is_fenced_stays_so_however_long_it_is_silent(
    stored: "Host.State.ValueType",
) -> None:
    assert state(stored, attached=False, silent=1e9) == stored


@pytest.mark.parametrize("stored", Host.State.values()[1:])
def test_every_host_that_attaches_is_up(stored: "Host.State.ValueType") -> None:
    assert state(stored, attached=True, silent=0.0) == Host.STATE_UP

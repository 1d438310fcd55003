"""What the leader makes of what an agent sees."""

import itertools

import pytest
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.instance_pb2 import Instance, ObservedState
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda_core.ids import HostId
from remuda_scheduler.hosts.observation import absorb

HERE = HostId("here")
_RUNNING, _PAUSED = Instance.STATE_RUNNING, Instance.STATE_PAUSED
_STOPPED, _FAILED = Instance.STATE_STOPPED, Instance.STATE_FAILED
RUNNING = ObservedState(power_state=Instance.POWER_STATE_RUNNING, reason="booted")


def status(state: "Instance.State.ValueType" = Instance.STATE_RUNNING) -> InstanceStatus:
    return InstanceStatus(state=state, host_id=HERE, epoch=3, observed=RUNNING)


def seen(power: "Instance.PowerState.ValueType", reason: str = "", epoch: int = 3) -> ObservedInstance:
    return ObservedInstance(instance_id="i", epoch=epoch, power_state=power, reason=reason)


@pytest.mark.parametrize(
    ("before", "power", "reason", "after", "event"),
    [
        (_RUNNING, Instance.POWER_STATE_SHUTOFF, "shutdown", _STOPPED, "GUEST_SHUT_DOWN"),
        (_RUNNING, Instance.POWER_STATE_SHUTOFF, "crashed", _FAILED, "GUEST_CRASHED"),
        (_RUNNING, Instance.POWER_STATE_SHUTOFF, "unknown", _STOPPED, "GUEST_FOUND_OFF"),
        (_RUNNING, Instance.POWER_STATE_CRASHED, "panicked", _FAILED, "GUEST_CRASHED"),
        (_RUNNING, Instance.POWER_STATE_PAUSED, "ioerror", _PAUSED, "GUEST_FOUND_PAUSED"),
        (_STOPPED, Instance.POWER_STATE_ABSENT, "", _FAILED, "DOMAIN_VANISHED"),
        (_STOPPED, Instance.POWER_STATE_RUNNING, "", _RUNNING, "GUEST_FOUND_RUNNING"),
    ],
)
def test_the_state_of_an_idle_instance_follows_its_guest(
    before: "Instance.State.ValueType",
    power: "Instance.PowerState.ValueType",
    reason: str,
    after: "Instance.State.ValueType",
    event: str,
) -> None:
    absorbed = absorb(status(before), HERE, seen(power, reason), held=False)
    assert absorbed is not None
    assert absorbed.status.state == after
    assert absorbed.event is not None
    assert absorbed.event.type == event
    assert bool(absorbed.status.status_message) == (after == Instance.STATE_FAILED)


@pytest.mark.parametrize(
    ("state", "power"), list(itertools.product(Instance.State.values()[1:], Instance.PowerState.values()[2:]))
)
def test_while_an_operation_holds_the_instance_only_the_observed_state_changes(
    state: "Instance.State.ValueType", power: "Instance.PowerState.ValueType"
) -> None:
    absorbed = absorb(status(state), HERE, seen(power, "x"), held=True)
    assert absorbed is not None
    assert absorbed.event is None
    assert absorbed.status.state == state
    assert absorbed.status.observed.power_state == power


def test_the_same_observation_again_writes_nothing() -> None:
    assert absorb(status(), HERE, seen(Instance.POWER_STATE_RUNNING, "booted"), held=False) is None


def test_a_copy_that_is_not_the_one_on_record_is_ignored() -> None:
    off = Instance.POWER_STATE_SHUTOFF
    assert absorb(status(), HostId("elsewhere"), seen(off), held=False) is None
    assert absorb(status(), HERE, seen(off, epoch=2), held=False) is None


@pytest.mark.parametrize("state", [Instance.STATE_RESCUED, Instance.STATE_SUSPENDED, Instance.STATE_FAILED])
def test_other_states_are_left_by_operations_only(
    state: "Instance.State.ValueType",
) -> None:
    absorbed = absorb(status(state), HERE, seen(Instance.POWER_STATE_SHUTOFF, "shutdown"), held=False)
    assert absorbed is not None
    assert absorbed.status.state == state


def test_a_crash_is_an_error_and_a_shutdown_is_not() -> None:
    crash = absorb(status(), HERE, seen(Instance.POWER_STATE_CRASHED), held=False)
    shutdown = absorb(status(), HERE, seen(Instance.POWER_STATE_SHUTOFF, "shutdown"), held=False)
    assert crash
    assert crash.event
    assert crash.event.severity == InstanceEvent.SEVERITY_ERROR
    assert shutdown
    assert shutdown.event
    assert shutdown.event.severity == InstanceEvent.SEVERITY_INFO

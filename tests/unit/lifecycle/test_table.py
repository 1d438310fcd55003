"""The state table says what the design says."""

import itertools

import pytest
from remuda.compute.v1.instance_pb2 import Instance
from remuda_core import lifecycle
from remuda_core.errors import Reason
from remuda_core.lifecycle import (
    DELETING,
    FAILED,
    PAUSED,
    RESCUED,
    RESIZED,
    RUNNING,
    SHELVED,
    STATES,
    STOPPED,
    SUSPENDED,
    TABLE,
    Action,
    State,
    WhileLocked,
    check,
    holds_already,
)

EVERY = (Action.LOCK, Action.UNLOCK, Action.EVACUATE, Action.DELETE, Action.RECONCILE)


def test_every_action_has_a_row_and_every_state_of_the_proto_is_known() -> None:
    assert set(TABLE) == set(Action)
    assert set(STATES) == set(Instance.State.values()) - {Instance.STATE_UNSPECIFIED}


@pytest.mark.parametrize(
    ("action", "states"),
    [
        (Action.START, {STOPPED, FAILED, RESCUED, RESIZED}),
        (Action.STOP, {RUNNING, PAUSED, FAILED, RESCUED, RESIZED}),
        (Action.REBOOT_SOFT, {RUNNING}),
        (Action.REBOOT_HARD, {RUNNING, STOPPED, FAILED, PAUSED, SUSPENDED, RESCUED, RESIZED}),
        (Action.PAUSE, {RUNNING}),
        (Action.SUSPEND, {RUNNING, PAUSED}),
        (Action.RESUME, {PAUSED, SUSPENDED}),
        (Action.RESIZE, {RUNNING, STOPPED}),
        (Action.CONFIRM_RESIZE, {RESIZED}),
        (Action.REVERT_RESIZE, {RESIZED}),
        (Action.SNAPSHOT, {RUNNING, PAUSED, SUSPENDED, STOPPED}),
        (Action.MIGRATE, {RUNNING, STOPPED, SUSPENDED}),
        (Action.LIVE_MIGRATE, {RUNNING, PAUSED}),
        (Action.SHELVE, {RUNNING, STOPPED, PAUSED, SUSPENDED}),
        (Action.UNSHELVE, {SHELVED}),
        (Action.RESCUE, {RUNNING, STOPPED, FAILED}),
        (Action.UNRESCUE, {RESCUED}),
        (Action.REBUILD, {RUNNING, STOPPED, RESCUED, FAILED}),
        (Action.CREATE, set()),
        *((action, set(STATES)) for action in EVERY),
    ],
)
def test_an_action_is_allowed_exactly_from(action: Action, states: set[State]) -> None:
    refusals = {state: check(action, state, admin=True, discard_memory=True) for state in STATES}
    assert {state for state, refusal in refusals.items() if refusal is None} == states
    assert all(r.reason is Reason.STATE_FORBIDS_ACTION for r in refusals.values() if r is not None)


@pytest.mark.parametrize(
    ("action", "state"),
    [
        (Action.STOP, PAUSED),
        (Action.REBOOT_HARD, PAUSED),
        (Action.REBOOT_HARD, SUSPENDED),
        (Action.SHELVE, PAUSED),
        (Action.SHELVE, SUSPENDED),
    ],
)
def test_memory_is_never_dropped_unasked(action: Action, state: State) -> None:
    refusal = check(action, state)
    assert refusal is not None
    assert refusal.reason is Reason.MEMORY_WOULD_BE_LOST
    assert check(action, state, discard_memory=True) is None


def test_discarding_memory_is_asked_for_nowhere_else() -> None:
    asked = {(action, state) for action, row in TABLE.items() for state in row.discard_memory}
    assert len(asked) == 5
    assert all(row.discard_memory <= row.allowed_from for row in TABLE.values())


def test_a_lock_refuses_all_but_these() -> None:
    passing = {a for a in Action if check(a, RUNNING, locked=True, discard_memory=True) is None}
    assert passing == {Action.LOCK, Action.UNLOCK, Action.SNAPSHOT, Action.EVACUATE}
    refusal = check(Action.STOP, RUNNING, locked=True, instance="projects/demo/instances/web")
    assert refusal is not None
    assert refusal.reason is Reason.INSTANCE_LOCKED
    assert "projects/demo/instances/web" in refusal.message


def test_reconcile_passes_a_lock_for_admins_only() -> None:
    assert check(Action.RECONCILE, RUNNING, locked=True) is not None
    assert check(Action.RECONCILE, RUNNING, locked=True, admin=True) is None
    assert TABLE[Action.EVACUATE].while_locked is WhileLocked.AUDITED


def test_only_delete_and_evacuate_supersede_the_operation_that_holds_the_instance() -> None:
    held = "operations/1"
    passing = {a for a in Action if check(a, RUNNING, held_by=held, discard_memory=True) is None}
    assert passing == {Action.DELETE, Action.EVACUATE}
    refusal = check(Action.STOP, RUNNING, held_by=held)
    assert refusal is not None
    assert refusal.reason is Reason.INSTANCE_BUSY
    assert refusal.metadata["operation"] == held


def test_what_the_state_forbids_is_said_before_who_holds_the_instance() -> None:
    refusal = check(Action.RESUME, STOPPED, held_by="operations/1")
    assert refusal is not None
    assert refusal.reason is Reason.STATE_FORBIDS_ACTION
    assert refusal.metadata == {
        "state": "STOPPED",
        "action": "ResumeInstance",
        "allowed_from": "PAUSED,SUSPENDED",
    }


@pytest.mark.parametrize(
    ("action", "state"),
    [
        (Action.START, RUNNING),
        (Action.STOP, STOPPED),
        (Action.PAUSE, PAUSED),
        (Action.SUSPEND, SUSPENDED),
        (Action.RESUME, RUNNING),
        (Action.SHELVE, SHELVED),
        (Action.RESCUE, RESCUED),
        (Action.DELETE, DELETING),
    ],
)
def test_asking_for_a_state_that_holds_is_no_error(action: Action, state: State) -> None:
    assert holds_already(action, state)


def test_an_action_either_holds_already_or_may_be_admitted_never_both_but_for_delete() -> None:
    both = {
        action
        for action, state in itertools.product(Action, STATES)
        if holds_already(action, state) and state in TABLE[action].allowed_from
    }
    assert both == {Action.DELETE}


def test_rpc_names_leave_out_the_kind() -> None:
    assert Action.REBOOT_SOFT.rpc == Action.REBOOT_HARD.rpc == "RebootInstance"
    assert Action.LIVE_MIGRATE.rpc == "LiveMigrateInstance"
    assert lifecycle.state_name(RUNNING) == "RUNNING"

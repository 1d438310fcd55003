"""The life of an instance as one table: which action is allowed from which state, and why not.

Pure data and pure functions. The api enforces it, ListAllowedActions serves it, docs/states.md is made from
it. It holds every action of the design; what a service serves today is that service's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from types import MappingProxyType
from typing import TypeAlias

from remuda.compute.v1.instance_pb2 import Instance

from remuda_core.errors import Reason, RemudaError, Violation, instance_busy

State: TypeAlias = "Instance.State.ValueType"


class Action(StrEnum):
    """What can be done with an instance; the value is the rpc's name, with the kind where one rpc has two."""

    CREATE = "CreateInstance"
    START = "StartInstance"
    STOP = "StopInstance"
    REBOOT_SOFT = "RebootInstance:SOFT"
    REBOOT_HARD = "RebootInstance:HARD"
    PAUSE = "PauseInstance"
    SUSPEND = "SuspendInstance"
    RESUME = "ResumeInstance"
    LOCK = "LockInstance"
    UNLOCK = "UnlockInstance"
    RESIZE = "ResizeInstance"
    CONFIRM_RESIZE = "ConfirmResize"
    REVERT_RESIZE = "RevertResize"
    SNAPSHOT = "SnapshotInstance"
    MIGRATE = "MigrateInstance"
    LIVE_MIGRATE = "LiveMigrateInstance"
    SHELVE = "ShelveInstance"
    UNSHELVE = "UnshelveInstance"
    RESCUE = "RescueInstance"
    UNRESCUE = "UnrescueInstance"
    REBUILD = "RebuildInstance"
    EVACUATE = "EvacuateInstance"
    DELETE = "DeleteInstance"
    RECONCILE = "ReconcileInstance"

    @property
    def rpc(self) -> str:
        return self.value.partition(":")[0]


class WhileLocked(Enum):
    """What a lock on the instance does to an action."""

    REFUSED = auto()
    ALLOWED = auto()
    AUDITED = auto()
    """Allowed, and recorded as done against a lock."""
    ADMIN = auto()
    """Allowed for admins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    allowed_from: frozenset[State]
    """Empty for CreateInstance: there is no instance yet."""
    discard_memory: frozenset[State] = frozenset()
    """Those of `allowed_from` in which the guest's memory would be lost unless the caller agrees."""
    already_in: frozenset[State] = frozenset()
    """States that the action leads to: asking again is a success without effect."""
    afterwards: str
    while_locked: WhileLocked = WhileLocked.REFUSED
    supersedes: bool = False
    """May be admitted while another operation holds the instance: that one is cancelled, this one is next."""


CREATING = Instance.STATE_CREATING
RUNNING = Instance.STATE_RUNNING
PAUSED = Instance.STATE_PAUSED
SUSPENDED = Instance.STATE_SUSPENDED
STOPPED = Instance.STATE_STOPPED
RESCUED = Instance.STATE_RESCUED
RESIZED = Instance.STATE_RESIZED
SHELVED = Instance.STATE_SHELVED
FAILED = Instance.STATE_FAILED
DELETING = Instance.STATE_DELETING

STATES: tuple[State, ...] = (
    CREATING,
    RUNNING,
    PAUSED,
    SUSPENDED,
    STOPPED,
    RESCUED,
    RESIZED,
    SHELVED,
    FAILED,
    DELETING,
)
_EVERY = frozenset(STATES)


def _in(*states: State) -> frozenset[State]:
    return frozenset(states)


TABLE: Mapping[Action, Row] = MappingProxyType(
    {
        Action.CREATE: Row(allowed_from=_in(), afterwards="RUNNING, or FAILED with nothing left behind"),
        Action.START: Row(
            allowed_from=_in(STOPPED, FAILED, RESCUED, RESIZED),
            already_in=_in(RUNNING),
            afterwards="RUNNING; RESCUED and RESIZED stay",
        ),
        Action.STOP: Row(
            allowed_from=_in(RUNNING, PAUSED, FAILED, RESCUED, RESIZED),
            discard_memory=_in(PAUSED),
            already_in=_in(STOPPED),
            afterwards="STOPPED; RESCUED and RESIZED stay",
        ),
        Action.REBOOT_SOFT: Row(allowed_from=_in(RUNNING), afterwards="RUNNING"),
        Action.REBOOT_HARD: Row(
            allowed_from=_in(RUNNING, STOPPED, FAILED, PAUSED, SUSPENDED, RESCUED, RESIZED),
            discard_memory=_in(PAUSED, SUSPENDED),
            afterwards="RUNNING; RESCUED and RESIZED stay",
        ),
        Action.PAUSE: Row(allowed_from=_in(RUNNING), already_in=_in(PAUSED), afterwards="PAUSED"),
        Action.SUSPEND: Row(
            allowed_from=_in(RUNNING, PAUSED), already_in=_in(SUSPENDED), afterwards="SUSPENDED"
        ),
        Action.RESUME: Row(
            allowed_from=_in(PAUSED, SUSPENDED), already_in=_in(RUNNING), afterwards="RUNNING"
        ),
        # Whether a lock is already held, and whose, is on the instance and not in its state.
        Action.LOCK: Row(allowed_from=_EVERY, afterwards="same", while_locked=WhileLocked.ALLOWED),
        Action.UNLOCK: Row(allowed_from=_EVERY, afterwards="same", while_locked=WhileLocked.ALLOWED),
        Action.RESIZE: Row(allowed_from=_in(RUNNING, STOPPED), afterwards="RESIZED, with a confirm deadline"),
        Action.CONFIRM_RESIZE: Row(allowed_from=_in(RESIZED), afterwards="state before the resize"),
        Action.REVERT_RESIZE: Row(allowed_from=_in(RESIZED), afterwards="state before the resize"),
        Action.SNAPSHOT: Row(
            allowed_from=_in(RUNNING, PAUSED, SUSPENDED, STOPPED),
            afterwards="same",
            while_locked=WhileLocked.ALLOWED,
        ),
        Action.MIGRATE: Row(allowed_from=_in(RUNNING, STOPPED, SUSPENDED), afterwards="state before"),
        Action.LIVE_MIGRATE: Row(allowed_from=_in(RUNNING, PAUSED), afterwards="same"),
        Action.SHELVE: Row(
            allowed_from=_in(RUNNING, STOPPED, PAUSED, SUSPENDED),
            discard_memory=_in(PAUSED, SUSPENDED),
            already_in=_in(SHELVED),
            afterwards="SHELVED, on no host",
        ),
        Action.UNSHELVE: Row(allowed_from=_in(SHELVED), afterwards="by intent"),
        Action.RESCUE: Row(
            allowed_from=_in(RUNNING, STOPPED, FAILED), already_in=_in(RESCUED), afterwards="RESCUED"
        ),
        Action.UNRESCUE: Row(allowed_from=_in(RESCUED), afterwards="by intent"),
        Action.REBUILD: Row(allowed_from=_in(RUNNING, STOPPED, RESCUED, FAILED), afterwards="by intent"),
        Action.EVACUATE: Row(
            allowed_from=_EVERY,
            afterwards="the recorded state or intent",
            while_locked=WhileLocked.AUDITED,
            supersedes=True,
        ),
        Action.DELETE: Row(allowed_from=_EVERY, already_in=_in(DELETING), afterwards="gone", supersedes=True),
        Action.RECONCILE: Row(allowed_from=_EVERY, afterwards="what is true", while_locked=WhileLocked.ADMIN),
    }
)


def state_name(state: State) -> str:
    """`RUNNING` for STATE_RUNNING."""
    return Instance.State.Name(state).removeprefix("STATE_")


def holds_already(action: Action, state: State) -> bool:
    """The state that the action leads to holds: answer with success and do nothing. Ask before `check`."""
    return state in TABLE[action].already_in


def check(
    action: Action,
    state: State,
    *,
    instance: str = "",
    locked: bool = False,
    admin: bool = False,
    discard_memory: bool = False,
    held_by: str = "",
) -> RemudaError | None:
    """Why the action is refused now, None when it may be admitted.

    `instance` is the resource name for the message; `held_by` names the operation that holds it. The order
    is fixed: what no waiting and no other argument would change comes first. An admin who passes a lock with
    `override_lock` calls this with `locked=False`, after recording it.
    """
    row = TABLE[action]
    subject = instance or "the instance"
    if locked and not _passes_lock(row, admin=admin):
        return RemudaError(
            Reason.INSTANCE_LOCKED,
            f"{subject} is locked",
            violations=[Violation(subject, "locked: unlock it first")],
        )
    if state not in row.allowed_from:
        return _forbidden(action, state, subject)
    if held_by and not row.supersedes:
        return instance_busy(subject, held_by)
    if state in row.discard_memory and not discard_memory:
        return RemudaError(
            Reason.MEMORY_WOULD_BE_LOST,
            f"{subject} is {state_name(state)}: {action.rpc} would drop its memory",
            metadata={"state": state_name(state)},
            violations=[Violation(subject, "set discard_memory to agree that its memory is lost")],
        )
    return None


def _passes_lock(row: Row, *, admin: bool) -> bool:
    match row.while_locked:
        case WhileLocked.REFUSED:
            return False
        case WhileLocked.ADMIN:
            return admin
        case WhileLocked.ALLOWED | WhileLocked.AUDITED:
            return True


def _forbidden(action: Action, state: State, subject: str) -> RemudaError:
    allowed = [state_name(one) for one in STATES if one in TABLE[action].allowed_from]
    return RemudaError(
        Reason.STATE_FORBIDS_ACTION,
        f"{subject} is {state_name(state)}: {action.rpc} is possible from {', '.join(allowed) or 'no state'}",
        metadata={"state": state_name(state), "action": action.rpc, "allowed_from": ",".join(allowed)},
        violations=[Violation(subject, f"is {state_name(state)}")],
    )

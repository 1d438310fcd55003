"""What a saga is made of. See docs/checklists/add-a-saga.md."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from google.protobuf.message import Message
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda_core.errors import RemudaError
from remuda_core.etcd import ops
from remuda_core.ids import HostId

if TYPE_CHECKING:
    from remuda_scheduler.engine.run import Run

S = TypeVar("S", bound=Message)
"""The message of store/v1/saga.proto that the saga remembers."""

Action: TypeAlias = "Callable[[Run[S]], Awaitable[None]]"


class AlreadyDone(Exception):
    """Raised by an undo that finds its step done for good, outside the journal (QEMU has switched over).

    The step then counts as done, and the saga goes forward from it; what came after it has been undone.
    """


class Unreachable(Enum):
    """What becomes of a step whose host cannot be reached for longer than the engine's patience."""

    FAIL = auto()
    OWE = auto()
    """It becomes a debt of the host, and the saga goes on."""


class Commit(Enum):
    """Whether opening the step passes the point of no return."""

    NO = auto()
    IF_NOT_CANCELLED = auto()
    """The txn that opens it compares the cancel flag unset."""
    BY_EVIDENCE = auto()
    """Something outside the journal decided already (QEMU switched over); a cancel comes too late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[S]):
    """Named after what exists when it is done. `do` and `undo` look first: repeating them is harmless."""

    name: str
    do: "Action[S]"
    undo: "Action[S] | None" = None
    host: "Callable[[Run[S]], str] | None" = None
    """UUID of the host where it acts; None: the control plane."""
    deadline_seconds: float = 600.0
    """For one attempt."""
    attempts: int = 3
    """For failures that may pass."""
    unreachable: Unreachable = Unreachable.FAIL
    commits: Commit = Commit.NO
    handles_cancel: bool = False
    """`do` watches `run.cancelled` itself; otherwise a step on a host is left when a cancel comes."""

    def host_id(self, run: "Run[S]") -> HostId:
        return HostId(self.host(run)) if self.host else HostId("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the last txn of an operation leaves behind, besides the operation itself."""

    change: Callable[[InstanceStatus], None] | None = None
    """Applied to the instance's status as it is then."""
    compare: tuple[ops.Compare, ...] = ()
    """What `also` rests on. When it does not hold any more, the saga is asked for its ending again."""
    instance_removed: bool = False
    """`also` deletes the instance; no status and no event is written."""
    response: Message | None = None
    also: tuple[ops.Op, ...] = ()
    events: tuple[InstanceEvent, ...] = ()
    """Before the event about the operation's end."""


async def _nothing(_run: "Run[Any]") -> None:
    """A saga that has nothing to prepare."""


def _no_retry(_run: "Run[Any]", _error: RemudaError) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saga(Generic[S]):
    """One verb."""

    action: str
    """The rpc's name, as in OperationRecord.action."""
    state: type[S]
    steps: tuple[Step[S], ...]
    succeed: "Callable[[Run[S]], Awaitable[Ending]]"
    fail: "Callable[[Run[S], RemudaError], Awaitable[Ending]]"
    begin: "Action[S]" = field(default=_nothing)
    """Fills `run.state` before the first step. A RemudaError ends the operation; nothing is undone."""
    retry_from: "Callable[[Run[S], RemudaError], str]" = field(default=_no_retry)
    """After a failure: name of the step to go back to (it and later ones are undone first), or empty."""
    takes_over_debts: bool = False
    """It deals with what hosts owe for the instance itself. For all others that is paid before their first
    order to the host.
    """

    def step(self, name: str) -> Step[S]:
        return next(step for step in self.steps if step.name == name)
